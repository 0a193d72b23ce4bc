//! Tables for people, JSON for programs. Results go to standard output, everything else to standard error.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Aligned columns.
    Table,
    /// One JSON value a line.
    Json,
}

impl Format {
    /// Prints `value` as one line of JSON, or `table` of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self {
            Self::Json => writeln!(out, "{}", serde_json::to_string(value)?),
            Self::Table => write!(out, "{}", table(value)),
        }
    }

    /// Prints rows: one JSON object a line, or one table.
    pub(crate) fn print_rows<T: Serialize>(
        self,
        rows: &[T],
        table: impl FnOnce(&[T]) -> String,
    ) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        match self {
            Self::Json => {
                for row in rows {
                    serde_json::to_writer(&mut out, row)?;
                    out.write_all(b"\n")?;
                }
            }
            Self::Table => write!(out, "{}", table(rows))?,
        }
        out.flush()
    }
}

/// A table without borders; the columns in `right` hold numbers.
pub(crate) fn columns(
    header: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let align = if right.contains(&index) {
            CellAlignment::Right
        } else {
            CellAlignment::Left
        };
        column.set_cell_alignment(align);
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Anybody who may write the volume chooses its names: control characters must not reach the terminal.
pub(crate) fn printable(text: &str) -> String {
    let bad = |c: char| {
        c.is_control()
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    if !text.contains(bad) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if bad(c) {
                c.escape_unicode().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_hostile_name_are_escaped() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}"), "a\\u{1b}[2Jb\\u{202e}");
        assert_eq!(printable("caf\u{e9} \u{1f347}"), "caf\u{e9} \u{1f347}");
    }

    #[test]
    fn numbers_are_aligned_right_and_lines_do_not_end_in_spaces() {
        let text = columns(
            &["name", "bytes"],
            &[1],
            [
                vec!["a".into(), "1".into()],
                vec!["long".into(), "1000".into()],
            ],
        );
        assert_eq!(text, "NAME  BYTES\na         1\nlong   1000\n");
    }
}
