//! How many files the system lets this process have open: each volunteer's connection is one.
//!
//! Many systems give a process 1,024 at first and let it ask for more. A host asks once, at its start, for what a full run
//! needs ([`WANTED`]), and says when it does not get that. Nothing else in the host knows the number: without a free one,
//! whoever knocks waits at the door until there is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::limits::VOLUNTEERS_MAX;

use crate::door::FOLLOWERS_MAX;

/// Files of the host itself: journal, store, data, uploads, and those who ask for a page at the moment.
const OWN: u64 = 512;
/// What a host that is full has open.
pub const WANTED: u64 = VOLUNTEERS_MAX as u64 + FOLLOWERS_MAX as u64 + OWN;

/// The system lets this process have fewer files open than a full run needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this system lets the host have {limit} files open, so that about {} volunteers can be connected, not \
     {VOLUNTEERS_MAX}. For more, raise the limit (ulimit -Hn {WANTED}; systemd: LimitNOFILE={WANTED}) and start again",
    limit.saturating_sub(FOLLOWERS_MAX as u64 + OWN)
)]
pub struct TooFew {
    /// How many it may have.
    limit: u64,
}

/// Asks the system for [`WANTED`] files.
///
/// # Errors
/// It gives fewer; this process has as many as it may.
pub fn raise() -> Result<(), TooFew> {
    raise_to(WANTED)
}

/// Asks the system for so many files; fewer than there are already is no wish.
///
/// # Errors
/// It gives fewer; this process has as many as it may.
pub fn raise_to(wanted: u64) -> Result<(), TooFew> {
    // No limit at all is `None`.
    let now = getrlimit(Resource::Nofile);
    let Some(current) = now.current.filter(|current| *current < wanted) else {
        return Ok(());
    };
    let most = now.maximum.map_or(wanted, |most| most.max(wanted));
    let limit = |current, maximum| Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    // Only who runs the system may have more than its maximum.
    if setrlimit(Resource::Nofile, limit(wanted, most)).is_ok() {
        return Ok(());
    }
    let allowed = now.maximum.unwrap_or(wanted).min(wanted);
    let got = match setrlimit(
        Resource::Nofile,
        limit(allowed, now.maximum.unwrap_or(most)),
    ) {
        Ok(()) => allowed,
        Err(_) => current,
    };
    if got < wanted {
        Err(TooFew { limit: got })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn too_few_files_are_told_with_what_they_are_good_for() {
        let few = TooFew { limit: 4_096 };
        expect!["this system lets the host have 4096 files open, so that about 2584 volunteers can be connected, not 20000. For more, raise the limit (ulimit -Hn 21512; systemd: LimitNOFILE=21512) and start again"]
            .assert_eq(&few.to_string());
    }

    #[test]
    fn what_no_system_gives_is_refused_and_leaves_as_much_as_there_was() {
        let before = getrlimit(Resource::Nofile).current;
        let refused = raise_to(u64::MAX >> 1);
        let after = getrlimit(Resource::Nofile).current;
        assert!(refused.is_err(), "{after:?}");
        assert!(after >= before, "{before:?} -> {after:?}");
    }
}
