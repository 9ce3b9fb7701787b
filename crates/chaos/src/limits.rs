//! Memory limit of a process, enforced by the kernel.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A separate cgroup where one can be created, otherwise `RLIMIT_DATA`. It applies to processes started with
/// [`MemoryLimit::wrapper`].
pub(crate) struct MemoryLimit {
    bytes: u64,
    group: Option<Group>,
}

struct Group {
    directory: PathBuf,
    /// Name of the file with the peak usage.
    peak: &'static str,
}

/// Parent directory, limit file and peak file of a cgroup: v1 and v2.
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
            // The kernel has created this file if the parent is a cgroup.
            let mut limit = OpenOptions::new().write(true).open(group.directory.join(limit)).ok()?;
            write!(limit, "{bytes}").ok()?;
            Some(group)
        });
        MemoryLimit { bytes, group }
    }

    /// Returns a prefix that runs a command under the limit.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        match &self.group {
            Some(Group { directory, .. }) => {
                let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", directory.display());
                ["sh", "-ec", &enter, "sh"].map(str::to_owned).into()
            }
            None => vec!["prlimit".to_owned(), format!("--data={}", self.bytes)],
        }
    }

    /// Describes how the limit is enforced.
    pub(crate) fn kind(&self) -> &'static str {
        match self.group {
            Some(_) => "a cgroup",
            None => "RLIMIT_DATA, no cgroup can be made here",
        }
    }

    /// Returns the peak memory charged to the group, in MiB. `None` without a group, or if the kernel does
    /// not report it.
    pub(crate) fn peak(&self) -> Option<f64> {
        let group = self.group.as_ref()?;
        let text = std::fs::read_to_string(group.directory.join(group.peak)).ok()?;
        Some(text.trim().parse::<f64>().ok()? / MIB)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Succeeds only if its processes have ended.
        let _ = std::fs::remove_dir(&self.directory);
    }
}
