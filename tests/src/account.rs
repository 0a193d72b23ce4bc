//! A volume whose bill a test keeps by hand: what each step adds and takes, compared with the kernel's page by page.

use anyhow::{Context, Result, bail, ensure};
use vineyard_charge::CgroupId;

use crate::commands::{Answer, Cause, Command, Content};
use crate::ledger::{self, Bill};
use crate::pod::{Pod, World};

/// The lengths at which the ways of the store and of the kernel part.
pub const SIZES: [u64; 13] = [
    0,
    1,
    4095,
    4096,
    (256 << 10) - 1,
    256 << 10,
    (256 << 10) + 1,
    (2 << 20) - 1,
    2 << 20,
    (2 << 20) + 1,
    2052 << 10,
    (4 << 20) + 4097,
    100 << 20,
];

/// Bytes of the pages that `len` bytes take.
#[must_use]
pub fn pages(len: u64) -> u64 {
    len.next_multiple_of(crate::model::PAGE)
}

/// What must be on whose bill.
#[derive(Clone, Debug)]
pub struct Account {
    bill: Bill,
    out_of_tree: u64,
    ahead: u64,
}

impl Account {
    /// The account of a volume as it is now, empty but for its own files.
    ///
    /// # Errors
    /// When it cannot be surveyed.
    pub fn open(world: &World) -> Result<Self> {
        Ok(Self {
            bill: ledger::survey(world.volume())?,
            out_of_tree: 0,
            ahead: 0,
        })
    }

    /// So many bytes may be in use beyond what is on the bill: reserved ahead by clients that are alive.
    pub fn ahead(&mut self, bytes: u64) {
        self.ahead = bytes;
    }

    /// So many bytes are in use although no path leads to them: drafts, and removed small objects that are mapped.
    pub fn out_of_tree(&mut self, bytes: u64) {
        self.out_of_tree = bytes;
    }

    /// `owner` pays for `len` bytes, in whole pages.
    pub fn add(&mut self, owner: CgroupId, len: u64) {
        *self.bill.entry(owner).or_default() += pages(len);
    }

    /// `owner` no longer pays for `len` bytes.
    ///
    /// # Errors
    /// When it did not.
    pub fn take(&mut self, owner: CgroupId, len: u64) -> Result<()> {
        let bytes = self.bill.get_mut(&owner).context("an owner")?;
        *bytes = bytes
            .checked_sub(pages(len))
            .context("more taken than there was")?;
        Ok(())
    }

    /// All that `from` pays is on the bill of `to`.
    pub fn transfer(&mut self, from: CgroupId, to: CgroupId) {
        let bytes = self.bill.remove(&from).unwrap_or(0);
        *self.bill.entry(to).or_default() += bytes;
    }

    /// What `owner` must pay.
    #[must_use]
    pub fn of(&self, owner: CgroupId) -> u64 {
        self.bill.get(&owner).copied().unwrap_or(0)
    }

    /// Compares with the kernel, page by page and by what statfs says.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, world: &World) -> Result<()> {
        ledger::check(world.volume(), &self.bill)?;
        let bytes = self.bill.values().sum::<u64>() + self.out_of_tree;
        ledger::check_used(world.mount(), bytes, self.ahead)
    }
}

/// Puts an object under a name.
///
/// # Errors
/// When it is refused.
pub fn put(pod: &mut Pod, name: &str, content: Content) -> Result<()> {
    let command = Command::Put {
        name: Some(name.into()),
        content,
        overwrite: true,
    };
    match pod.call(&command)? {
        Answer::Object { .. } => Ok(()),
        other => bail!("put of {content:?}: {other:?}"),
    }
}

/// Puts an object that must be refused for `cause`.
///
/// # Errors
/// When it is not.
pub fn put_refused(pod: &mut Pod, content: Content, cause: Cause) -> Result<String> {
    let command = Command::Put {
        name: Some("refused".into()),
        content,
        overwrite: true,
    };
    match pod.call(&command)? {
        Answer::Failed(failure) if failure.cause == cause => Ok(failure.message),
        other => bail!("put of {content:?}: {other:?}"),
    }
}

/// Makes an object in place and seals it. Its memory stays held as `view`.
///
/// # Errors
/// When it is refused.
pub fn create(pod: &mut Pod, view: u32, name: &str, content: Content) -> Result<()> {
    done(pod, &Command::Create { view, content })?;
    let name = Some(name.into());
    match pod.call(&Command::Seal { view, name })? {
        Answer::Object { .. } => Ok(()),
        other => bail!("seal of {content:?}: {other:?}"),
    }
}

/// Gets an object and checks every byte; a view of it may be held.
///
/// # Errors
/// When it is not there, or a byte is wrong.
pub fn get(
    pod: &mut Pod,
    name: &str,
    content: Content,
    shared: bool,
    view: Option<u32>,
) -> Result<()> {
    let command = Command::Get {
        name: name.into(),
        content,
        shared,
        view,
    };
    match pod.call(&command)? {
        Answer::Object { .. } => Ok(()),
        other => bail!("get of {content:?}: {other:?}"),
    }
}

/// Removes a name that is there.
///
/// # Errors
/// When it is not.
pub fn remove(pod: &mut Pod, name: &str) -> Result<()> {
    let answer = pod.call(&Command::Remove { name: name.into() })?;
    ensure!(answer == Answer::Count(1), "remove: {answer:?}");
    Ok(())
}

/// Has the client do something that answers `Done`.
///
/// # Errors
/// When it does not.
pub fn done(pod: &mut Pod, command: &Command) -> Result<()> {
    match pod.call(command)? {
        Answer::Done => Ok(()),
        other => bail!("{command:?}: {other:?}"),
    }
}
