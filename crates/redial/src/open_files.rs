//! How many files, and with them connections, the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is open beside clients' connections: the database's, the broker's, listeners, event queues, standard streams.
const OTHERS: u64 = 128;

/// Raises the process's own limit as far as it may, and answers it; none if there is none. Systems that give
/// programs 1,024 do so for the sake of old ones, and let those that can use more ask for it.
pub(crate) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            current
        }
    }
}

/// The same, for that many attempts at once: each may have a connection of its own.
pub(crate) fn raise_limit_for(max_in_flight: usize) {
    let limit = raise_limit();
    if limit.is_some_and(|limit| limit < OTHERS + max_in_flight as u64) {
        tracing::warn!(
            ?limit,
            max_in_flight,
            "too few open files are allowed: raise their limit, or lower dispatcher.max_in_flight"
        );
    }
}

/// How many connections each of `workers` may have: no more than `most`, nor than there are files for. A server that
/// runs out of files stops taking connections in fits and starts, and can't reconnect to its database.
pub(crate) fn connections_per_worker(open_files: Option<u64>, workers: usize, most: usize) -> usize {
    let each = open_files.map_or(u64::MAX, |limit| limit.saturating_sub(OTHERS) / workers.max(1) as u64);
    usize::try_from(each).unwrap_or(usize::MAX).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_need_more_files_than_there_are() {
        assert_eq!(connections_per_worker(None, 2, 8_192), 8_192);
        assert_eq!(connections_per_worker(Some(1 << 20), 64, 8_192), 8_192);
        assert_eq!(connections_per_worker(Some(1_024), 4, 8_192), 224);
        assert_eq!(connections_per_worker(Some(100), 4, 8_192), 1);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        let raised = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!((raised, current), (maximum, maximum));
    }
}
