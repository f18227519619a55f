//! The newest boot of a node, kept in `DATA_DIR/<cluster>-<node>.boot` as a decimal number on a line of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::Settings;
use crate::types::{Boot, Nanos};

/// Where it is kept.
pub(super) fn path(settings: &Settings) -> PathBuf {
    settings.data_dir.join(format!("{}-{}.boot", settings.cluster, settings.node.0))
}

/// The newest boot there was; zero: none is known.
pub(super) fn read(settings: &Settings) -> Boot {
    let text = fs::read_to_string(path(settings)).unwrap_or_default();
    Boot(text.trim().parse().unwrap_or(0))
}

/// The boot that follows `newest` at this wall time.
pub(super) fn next(newest: Boot, wall: Nanos) -> Boot {
    Boot(wall.0.max(newest.0.saturating_add(1)))
}

/// Keeps `boot`: whole or not at all.
pub(super) fn write(settings: &Settings, boot: Boot) -> io::Result<()> {
    fs::create_dir_all(&settings.data_dir)?;
    let (path, draft) = (path(settings), path(settings).with_extension("boot-draft"));
    let mut file = File::create(&draft)?;
    writeln!(file, "{}", boot.0)?;
    file.sync_data()?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_later_than_the_one_before_whatever_the_clock_says() {
        let folder = std::env::temp_dir().join(format!("tandem-boots-{}", std::process::id()));
        let place = folder.to_str().unwrap();
        let pairs = [("NODES", "1@a=127.0.0.1:7001,2@b=127.0.0.1:7101"), ("DATA_DIR", place)];
        let settings = Settings::from_pairs(&pairs).unwrap();
        assert_eq!(read(&settings), Boot(0), "it has never lived");
        let first = next(read(&settings), Nanos(1_000));
        assert_eq!(first, Boot(1_000));
        write(&settings, first).unwrap();
        // Another supervisor, after a restart of the machine.
        let stale = Nanos(7);
        assert_eq!(next(read(&settings), stale), Boot(1_001));
        assert_eq!(next(read(&settings), Nanos(5_000)), Boot(5_000));
        fs::write(path(&settings), "what?").unwrap();
        assert_eq!(read(&settings), Boot(0));
        fs::remove_dir_all(folder).unwrap();
    }
}
