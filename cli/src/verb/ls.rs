//! `ls`: names, plain files and streams.

use std::io::{self, BufWriter, Write};
use std::time::UNIX_EPOCH;

use clap::ValueEnum;
use serde::Serialize;
use vineyard_store::{ListOptions, Listed, Listing};

use crate::args::Settings;
use crate::bytes::{age, human};
use crate::exit::Outcome;
use crate::output::{Format, columns, printable};
use crate::progress;

/// List names, plain files and streams
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Names that start so (`runs/17/`), or that match a glob (`runs/*/model`, `**/model`)
    #[arg(value_name = "PREFIX|GLOB")]
    pattern: Option<String>,
    /// Show kind, size and age
    #[arg(short, long)]
    long: bool,
    /// The order; programs get entries as they are found unless they ask
    #[arg(long, value_enum, value_name = "KEY")]
    sort: Option<Sort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// As found: needs no memory
    None,
    /// By name
    Name,
    /// Largest first
    Size,
    /// Newest first
    Age,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    /// `object`, `file`, `stream`, `foreign` or `lost`.
    what: &'static str,
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<f64>,
}

impl Ls {
    /// Lists.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let is_glob = |pattern: &String| pattern.contains(['*', '?', '[', '{']);
        let (glob, prefix) = match self.pattern {
            Some(pattern) if is_glob(&pattern) => (Some(pattern), None),
            pattern => (None, pattern),
        };
        let sort = self.sort.unwrap_or(match settings.format {
            Format::Json => Sort::None,
            Format::Table => Sort::Name,
        });
        let stat =
            self.long || settings.format == Format::Json || matches!(sort, Sort::Size | Sort::Age);
        let list = settings
            .volume()?
            .list(&ListOptions { prefix, glob, stat })?;
        let mut out = BufWriter::new(io::stdout().lock());
        if sort == Sort::None && !(self.long && settings.format == Format::Table) {
            for entry in list {
                line(&mut out, &entry?, settings.format)?;
            }
        } else {
            let bar = progress::spinner("listing");
            let mut entries = list.collect::<Result<Vec<_>, _>>()?;
            bar.finish_and_clear();
            order(&mut entries, sort);
            if self.long && settings.format == Format::Table {
                write!(out, "{}", table(&entries))?;
            } else {
                entries
                    .iter()
                    .try_for_each(|entry| line(&mut out, entry, settings.format))?;
            }
        }
        out.flush()?;
        Ok(Outcome::Done)
    }
}

fn order(entries: &mut [Listed], sort: Sort) {
    let size = |entry: &Listed| entry.stat.as_ref().map(|stat| stat.len);
    let time = |entry: &Listed| entry.stat.as_ref().map(|stat| stat.modified);
    entries.sort_by(|a, b| {
        let by = match sort {
            Sort::Size => size(b).cmp(&size(a)),
            Sort::Age => time(b).cmp(&time(a)),
            Sort::Name | Sort::None => std::cmp::Ordering::Equal,
        };
        by.then_with(|| a.name.as_str().cmp(b.name.as_str()))
    });
}

fn line(out: &mut impl Write, entry: &Listed, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer(&mut *out, &row(entry))?;
            out.write_all(b"\n")?;
        }
        Format::Table => {
            let slash = if entry.what == Listing::Stream {
                "/"
            } else {
                ""
            };
            writeln!(out, "{}{slash}", printable(entry.name.as_str()))?;
        }
    }
    Ok(())
}

fn row(entry: &Listed) -> Row<'_> {
    let (what, kind, id) = match &entry.what {
        Listing::Object(id, kind) => (
            if entry.stat.is_some() {
                "object"
            } else {
                "lost"
            },
            Some(kind.as_str()),
            Some(id.to_string()),
        ),
        Listing::Plain(kind) => ("file", Some(kind.as_str()), None),
        Listing::Stream => ("stream", None, None),
        Listing::Foreign => ("foreign", None, None),
    };
    let since =
        |stat: &vineyard_store::Stat| stat.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Row {
        name: entry.name.as_str(),
        what,
        kind,
        id,
        bytes: entry.stat.as_ref().map(|stat| stat.len),
        modified: entry.stat.as_ref().map(|stat| since(stat).as_secs_f64()),
    }
}

fn table(entries: &[Listed]) -> String {
    columns(
        &["name", "what", "kind", "size", "age"],
        &[3, 4],
        entries.iter().map(|entry| {
            let row = row(entry);
            vec![
                row.name.to_owned(),
                row.what.to_owned(),
                row.kind.unwrap_or("-").to_owned(),
                entry
                    .stat
                    .as_ref()
                    .map_or_else(|| "-".into(), |stat| human(stat.len)),
                entry
                    .stat
                    .as_ref()
                    .map_or_else(|| "-".into(), |stat| age(stat.modified)),
            ]
        }),
    )
}
