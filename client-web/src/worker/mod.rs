//! The worker: the whole volunteer but its peer connections.
//!
//! Begin reading at [`start`].

mod port;

use crate::broken;
use crate::messages::ToPage;

/// The module's beginning: listens to the page, and says that it does.
pub fn start() {
    broken::install("worker", |report| port::say(&ToPage::Broken(report)));
    port::say(&ToPage::Ready);
}
