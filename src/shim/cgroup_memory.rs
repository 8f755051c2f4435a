//! Whether the kernel ended something of this container for lack of memory: its control group counts it.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// Files of a control group, of version 2 and of version 1: the counters, and the limit.
const FILES: [(&str, &str); 2] =
    [("memory.events", "memory.max"), ("memory/memory.oom_control", "memory/memory.limit_in_bytes")];
/// Version 1 has no word for no limit, only a number that no machine reaches.
const NO_LIMIT: u64 = 1 << 60;

/// The OOM counter of this container's control group, and what it said at first.
pub struct CgroupMemory {
    root: PathBuf,
    before: u64,
}

impl CgroupMemory {
    /// Counts from now on.
    pub fn watched() -> Self {
        Self::below(Path::new(ROOT))
    }

    fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), before: killed(root) }
    }

    /// Why something was killed since, for people; none where nothing was, or where nobody counts it.
    pub fn shortage(&self) -> Option<String> {
        (killed(&self.root) > self.before).then(|| match limit(&self.root) {
            Some(bytes) => format!("out of memory, limit {}", quantity(bytes)),
            None => "out of memory, without a limit of its own".to_owned(),
        })
    }
}

fn killed(root: &Path) -> u64 {
    let count = |(events, _): &(&str, &str)| {
        let text = fs::read_to_string(root.join(events)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    FILES.iter().find_map(count).unwrap_or_default()
}

fn limit(root: &Path) -> Option<u64> {
    let bytes = |(_, limit): &(&str, &str)| fs::read_to_string(root.join(limit)).ok()?.trim().parse().ok();
    FILES.iter().find_map(bytes).filter(|bytes| *bytes < NO_LIMIT)
}

/// As Kubernetes writes it.
fn quantity(bytes: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.into_iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift && bytes > 0);
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("lockstep-memory-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("memory")).expect("a folder");
        for (file, text) in files {
            fs::write(root.join(file), text).expect("a file");
        }
        root
    }

    #[test]
    fn a_kill_is_told_with_the_limit() {
        for (name, events, limit, bytes, words) in [
            ("two", "memory.events", "memory.max", "67108864\n", "out of memory, limit 64Mi"),
            ("odd", "memory.events", "memory.max", "67108865\n", "out of memory, limit 67108865"),
            ("max", "memory.events", "memory.max", "max\n", "out of memory, without a limit of its own"),
            ("one", FILES[1].0, FILES[1].1, "1073741824\n", "out of memory, limit 1Gi"),
            ("none", FILES[1].0, FILES[1].1, "9223372036854771712\n", "out of memory, without a limit of its own"),
        ] {
            let root = group(name, &[(events, "low 0\noom 1\noom_kill 1\noom_group_kill 0\n"), (limit, bytes)]);
            let memory = CgroupMemory::below(&root);
            assert_eq!(memory.shortage(), None, "{name}: what was before does not count");
            fs::write(root.join(events), "low 0\noom 2\noom_kill 2\n").expect("a file");
            assert_eq!(memory.shortage().as_deref(), Some(words), "{name}");
            fs::remove_dir_all(root).expect("it goes");
        }
        assert_eq!(CgroupMemory::below(Path::new("/nowhere")).shortage(), None);
    }
}
