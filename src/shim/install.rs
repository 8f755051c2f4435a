//! The init container's part: the shim moves into the shared volume.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Stop, exit};

/// The agent's container may run as another uid than the init container, hence the open modes.
pub fn install(dir: &Path) -> Result<u8, Stop> {
    let own =
        std::env::current_exe().map_err(|error| Stop::new(exit::INTERNAL, format!("cannot find myself: {error}")))?;
    lay_out(&own, dir).map_err(|error| {
        let place = dir.display();
        Stop::new(exit::INTERNAL, format!("cannot install into {place}: {error}"))
    })?;
    Ok(0)
}

fn lay_out(own: &Path, dir: &Path) -> std::io::Result<()> {
    let bin = dir.join("bin");
    folder(&bin, 0o755)?;
    for (name, mode) in [("in", 0o777), ("out", 0o777), ("work", 0o777)] {
        folder(&dir.join(name), mode)?;
    }
    // Renamed into place, so that a repeated init container finds either nothing or the whole.
    let part = bin.join(".lockstep.part");
    let _ = fs::remove_file(&part);
    fs::copy(own, &part)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o555))?;
    fs::rename(&part, bin.join("lockstep"))
}

fn folder(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::scratch;
    use super::*;

    #[test]
    fn lays_out_twice_with_open_modes() {
        let dir = scratch("install");
        let own = dir.join("own");
        fs::write(&own, "program").unwrap();
        let root = dir.join("root");
        lay_out(&own, &root).unwrap();
        lay_out(&own, &root).unwrap();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("bin/lockstep"), 0o555);
        assert_eq!((mode("in"), mode("out"), mode("work")), (0o777, 0o777, 0o777));
        assert_eq!(fs::read(root.join("bin/lockstep")).unwrap(), b"program");
        assert!(!root.join("bin/.lockstep.part").exists());
    }
}
