//! The limit of open files, which also limits connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files other than client connections: database, broker, listeners, event queues, standard streams.
const OTHERS: u64 = 128;

/// Returns the limit of open files that [`raise_limit`] reaches; `None` is unlimited.
pub(crate) fn hard_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Returns how many open files a dispatcher needs for a connection per attempt in flight.
pub(crate) fn needed_for(max_in_flight: usize) -> u64 {
    OTHERS + max_in_flight as u64
}

/// Raises the soft limit of open files to the hard limit and returns it; `None` is unlimited. Systems default
/// to a soft limit of 1,024 for the sake of old programs and let others raise it.
pub(crate) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            current
        }
    }
}

/// Raises the limit. Warns if it is too low for a connection per attempt in flight.
pub(crate) fn raise_limit_for(max_in_flight: usize) {
    let limit = raise_limit();
    if limit.is_some_and(|limit| limit < needed_for(max_in_flight)) {
        tracing::warn!(
            ?limit,
            max_in_flight,
            "the limit of open files is too low: raise it, or lower dispatcher.max_in_flight"
        );
    }
}

/// Returns the maximum connections of each worker: `most`, or fewer if the limit of open files is too low. A
/// server that runs out of files accepts connections only intermittently and can't reconnect to its database.
pub(crate) fn connections_per_worker(open_files: Option<u64>, workers: usize, most: usize) -> usize {
    let each = open_files.map_or(u64::MAX, |limit| limit.saturating_sub(OTHERS) / workers.max(1) as u64);
    usize::try_from(each).unwrap_or(usize::MAX).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_exceed_the_limit_of_open_files() {
        assert_eq!(connections_per_worker(None, 2, 8_192), 8_192);
        assert_eq!(connections_per_worker(Some(1 << 20), 64, 8_192), 8_192);
        assert_eq!(connections_per_worker(Some(1_024), 4, 8_192), 224);
        assert_eq!(connections_per_worker(Some(100), 4, 8_192), 1);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let raised = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!((raised, current), (maximum, maximum));
    }
}
