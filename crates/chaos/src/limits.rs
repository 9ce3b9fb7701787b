//! A limit on a process's memory that the kernel enforces.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A cgroup of its own where one can be made, else `RLIMIT_DATA`. Start processes under [`MemoryLimit::wrapper`].
pub(crate) struct MemoryLimit {
    bytes: u64,
    group: Option<Group>,
}

struct Group {
    directory: PathBuf,
    /// The file with the most that was ever used.
    peak: &'static str,
}

/// Where groups are made, and the files of their limit and peak: cgroup v1, and v2.
const KINDS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "memory.peak"),
];
const MIB: f64 = 1024.0 * 1024.0;

impl MemoryLimit {
    pub(crate) fn new(bytes: u64) -> MemoryLimit {
        let name = format!("redial-chaos-{}", std::process::id());
        let group = KINDS.iter().find_map(|(root, limit, peak)| {
            let directory = Path::new(root).join(&name);
            std::fs::create_dir(&directory).ok()?;
            let group = Group { directory, peak };
            // The kernel has made the file, if this is a place for groups.
            let mut limit = OpenOptions::new().write(true).open(group.directory.join(limit)).ok()?;
            write!(limit, "{bytes}").ok()?;
            Some(group)
        });
        MemoryLimit { bytes, group }
    }

    /// What runs a command under the limit.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        match &self.group {
            Some(Group { directory, .. }) => {
                let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", directory.display());
                ["sh", "-ec", &enter, "sh"].map(str::to_owned).into()
            }
            None => vec!["prlimit".to_owned(), format!("--data={}", self.bytes)],
        }
    }

    /// How it is enforced, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self.group {
            Some(_) => "a cgroup",
            None => "RLIMIT_DATA, no cgroup can be made here",
        }
    }

    /// The most that was charged to the group, in MiB; `None` without a group, and where the kernel does not tell.
    pub(crate) fn peak(&self) -> Option<f64> {
        let group = self.group.as_ref()?;
        let text = std::fs::read_to_string(group.directory.join(group.peak)).ok()?;
        Some(text.trim().parse::<f64>().ok()? / MIB)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes must have ended.
        let _ = std::fs::remove_dir(&self.directory);
    }
}
