//! What the tests of the store share: a volume in memory that is removed with its test.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use vineyard_store::{Key, Kind, Mode, Name, Object, Options, PutOptions, Ref, Volume};

pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) volume: Arc<Volume>,
}

pub(crate) fn place() -> Place {
    place_with(Options::default())
}

pub(crate) fn place_with(options: Options) -> Place {
    let directory = memory_directory();
    let volume = Arc::new(Volume::open(directory.path(), options).unwrap());
    Place { directory, volume }
}

pub(crate) fn memory_directory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::Builder::new()
        .prefix("vineyard-test-")
        .tempdir_in(parent)
        .unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn named(text: &str) -> PutOptions {
    PutOptions::named(name(text))
}

impl Place {
    pub(crate) fn put(&self, at: &str, content: &[u8]) -> Ref {
        self.volume
            .put(Kind::Raw, &[IoSlice::new(content)], &named(at))
            .unwrap()
    }

    pub(crate) fn get(&self, at: &str) -> Object {
        self.volume
            .get(Key::Name(&name(at)), Mode::CopyOnWrite)
            .unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// File names in `.vineyard/objects`.
    pub(crate) fn objects(&self) -> Vec<String> {
        self.own("objects")
    }

    pub(crate) fn own(&self, directory: &str) -> Vec<String> {
        let path = self.path().join(".vineyard").join(directory);
        std::fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Bytes that differ from page to page.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i / 7 + i / 4096) % 251).unwrap() ^ seed)
        .collect()
}
