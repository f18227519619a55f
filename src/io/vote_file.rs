//! The vote file: what this node has promised as a voter, on its disk before anybody hears of it.
//!
//! `DATA_DIR/<cluster>-<node>.vote`: two slots of a fixed size, written in turn, so that whatever a crash does to one
//! the other still holds what was written before. Both start with
//!
//! | bytes | |
//! |---|---|
//! | 8 | `TNDMVOTE` |
//! | 8 | checksum (xxh3) of all that follows |
//! | 8 | generation: grows with each write |
//! | 8 | birth: when the file was made, and by whom; a voter with another birth than agreed has forgotten its votes |
//! | 8 | length of the content, which follows |
//!
//! Numbers are little endian. The file appears under its name only with its first slot written.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::types::NodeId;

const MAGIC: [u8; 8] = *b"TNDMVOTE";
const HEADER: usize = 40;
/// What a slot has room for: several maps of the largest size.
const SLOT: usize = 1 << 18;

/// The vote file cannot be used: this node cannot vote.
#[derive(Debug, thiserror::Error)]
pub enum VoteFileError {
    /// The system said no.
    #[error("cannot {action} {}: {error}; TANDEM_DATA_DIR has to be a directory on a local disk that this user can write", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use: another process runs this node of this cluster; stop it, or give this node a TANDEM_NODE or TANDEM_DATA_DIR of its own", .0.display())]
    InUse(PathBuf),
    /// No slot can be read.
    #[error("{} is damaged: what this node has promised as a voter is lost; restore the file as it was when the node last ran, or let other nodes vote (TANDEM_VOTERS) in a new cluster. Do not just remove it from TANDEM_DATA_DIR: the other voters will not hear this one again", .0.display())]
    Damaged(PathBuf),
    /// More than a slot holds.
    #[error("{length} bytes do not fit into {}: its slots hold {most}", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        length: usize,
        /// What a slot holds.
        most: usize,
    },
}

/// One node's vote file, locked while it is open.
#[derive(Debug)]
pub struct VoteFile {
    file: File,
    path: PathBuf,
    birth: u64,
    generation: u64,
    content: Vec<u8>,
    /// Reused for each write.
    slot: Vec<u8>,
}

impl VoteFile {
    /// Opens the file of a node, which is made first if it is not there: with this `birth`, which no other file of the
    /// cluster may have had.
    ///
    /// # Errors
    /// See [`VoteFileError`].
    pub fn open(folder: &Path, cluster: &str, node: NodeId, birth: u64) -> Result<VoteFile, VoteFileError> {
        fs::create_dir_all(folder).map_err(failed("make the directory", folder))?;
        let path = folder.join(format!("{cluster}-{}.vote", node.0));
        if !path.try_exists().map_err(failed("look for", &path))? {
            create(folder, &path, birth)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(VoteFileError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        let mut newest: Option<(u64, u64, Vec<u8>)> = None;
        for index in 0..2 {
            let slot = read_slot(&file, index).map_err(failed("read", &path))?;
            newest = newest.max(parse(&slot));
        }
        let Some((generation, birth, content)) = newest else { return Err(VoteFileError::Damaged(path)) };
        Ok(VoteFile { file, path, birth, generation, content, slot: Vec::new() })
    }

    /// What the file was made with.
    pub fn birth(&self) -> u64 {
        self.birth
    }

    /// What was last saved, before this opening; none: nothing yet.
    pub fn stored(&self) -> Option<&[u8]> {
        Some(self.content.as_slice()).filter(|content| !content.is_empty())
    }

    /// Saves `content`. When this returns it survives a crash of the machine; after an error the node must not vote.
    ///
    /// # Errors
    /// See [`VoteFileError`].
    pub fn save(&mut self, content: &[u8]) -> Result<(), VoteFileError> {
        if content.len() > SLOT - HEADER {
            let (path, most) = (self.path.clone(), SLOT - HEADER);
            return Err(VoteFileError::TooLong { path, length: content.len(), most });
        }
        self.generation += 1;
        write_slot(&mut self.slot, self.generation, self.birth, content);
        let offset = (self.generation % 2) * SLOT as u64;
        self.file.write_all_at(&self.slot, offset).map_err(failed("write", &self.path))?;
        self.file.sync_data().map_err(failed("write to disk", &self.path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> VoteFileError {
    move |error| VoteFileError::System { action, path: path.to_owned(), error }
}

/// Makes a file without content, whole or not at all; another process may be faster.
fn create(folder: &Path, path: &Path, birth: u64) -> Result<(), VoteFileError> {
    let draft = path.with_extension(format!("vote-{birth:016x}"));
    let mut slot = Vec::new();
    write_slot(&mut slot, 0, birth, &[]);
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
        file.set_len(2 * SLOT as u64)?;
        file.write_all_at(&slot, 0)?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    let _ = fs::remove_file(&draft);
    written.and_then(|()| File::open(folder)?.sync_all()).map_err(failed("make", path))
}

fn read_slot(file: &File, index: u64) -> io::Result<Vec<u8>> {
    let mut slot = vec![0; SLOT];
    let mut filled = 0;
    while filled < SLOT {
        match file.read_at(&mut slot[filled..], index * SLOT as u64 + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(slot)
}

fn write_slot(slot: &mut Vec<u8>, generation: u64, birth: u64, content: &[u8]) {
    slot.clear();
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&[0; 8]);
    for number in [generation, birth, content.len() as u64] {
        slot.extend_from_slice(&number.to_le_bytes());
    }
    slot.extend_from_slice(content);
    let checksum = xxh3_64(&slot[16..]);
    slot[8..16].copy_from_slice(&checksum.to_le_bytes());
}

/// Generation, birth and content of a slot that was written to its end.
fn parse(slot: &[u8]) -> Option<(u64, u64, Vec<u8>)> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let (checksum, generation, birth, length) = (number(8)?, number(16)?, number(24)?, number(32)?);
    let end = HEADER.checked_add(usize::try_from(length).ok()?)?;
    let sound = slot.starts_with(&MAGIC) && xxh3_64(slot.get(16..end)?) == checksum;
    sound.then(|| (generation, birth, slot[HEADER..end].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own, gone in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("tandem-vote-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Folder(folder)
        }

        fn open(&self) -> Result<VoteFile, VoteFileError> {
            VoteFile::open(&self.0, "calls", NodeId(2), 77)
        }

        fn path(&self) -> PathBuf {
            self.0.join("calls-2.vote")
        }

        /// Turns a byte of slot `index` over.
        fn damage(&self, index: u64) {
            let file = OpenOptions::new().read(true).write(true).open(self.path()).unwrap();
            let mut byte = [0];
            let at = index * SLOT as u64 + 34;
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_saved_last_is_read_again_and_the_birth_stays() {
        let folder = Folder::new("saved");
        let file = folder.open().unwrap();
        assert_eq!((file.birth(), file.stored()), (77, None));
        drop(file);
        let mut file = VoteFile::open(&folder.0, "calls", NodeId(2), 78).unwrap();
        assert_eq!((file.birth(), file.stored()), (77, None), "it was born with the first opening");
        for content in [&b"one"[..], b"two, longer", b"three"] {
            file.save(content).unwrap();
            drop(file);
            file = folder.open().unwrap();
            assert_eq!((file.birth(), file.stored()), (77, Some(content)));
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_torn_write_leaves_what_was_saved_before() {
        let folder = Folder::new("torn");
        let mut file = folder.open().unwrap();
        file.save(b"one").unwrap();
        file.save(b"two").unwrap();
        drop(file);
        folder.damage(0);
        assert_eq!(folder.open().unwrap().stored(), Some(&b"one"[..]));
        folder.damage(1);
        let error = folder.open().unwrap_err();
        assert!(matches!(error, VoteFileError::Damaged(_)), "{error}");
        assert!(error.to_string().contains("calls-2.vote is damaged"), "{error}");
        assert!(error.to_string().contains("TANDEM_DATA_DIR"), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = Folder::new("locked");
        let first = folder.open().unwrap();
        let error = folder.open().unwrap_err().to_string();
        assert!(error.contains("calls-2.vote is in use") && error.contains("TANDEM_DATA_DIR"), "{error}");
        drop(first);
        folder.open().unwrap();
    }

    #[test]
    fn a_folder_that_is_none_is_named() {
        let folder = Folder::new("none");
        fs::write(&folder.0, b"a file").unwrap();
        let error = folder.open().unwrap_err().to_string();
        assert!(error.contains("TANDEM_DATA_DIR") && error.contains("tandem-vote-"), "{error}");
        fs::remove_file(&folder.0).unwrap();
    }

    #[test]
    fn more_than_a_slot_holds_is_refused_and_harms_nothing() {
        let folder = Folder::new("long");
        let mut file = folder.open().unwrap();
        file.save(b"one").unwrap();
        assert!(matches!(file.save(&vec![1; SLOT]), Err(VoteFileError::TooLong { .. })));
        file.save(&vec![2; SLOT - HEADER]).unwrap();
        drop(file);
        assert_eq!(folder.open().unwrap().stored().map(<[u8]>::len), Some(SLOT - HEADER));
    }
}
