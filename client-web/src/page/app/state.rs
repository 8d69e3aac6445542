//! What a person wants and what the worker tells, and the steps between them.
//!
//! [`State`] is a handful of signals, passed by value. The worker itself cannot be one of them: it is held here,
//! where the panic hook finds it, too. Begin with [`State::check`] and [`State::contribute`].

use std::cell::RefCell;
use std::sync::Arc;

use leptos::prelude::*;
use shared::wire::report::RunReport;
use wasm_bindgen_futures::spawn_local;

use super::kept::{self, Lock};
use crate::js::{Listener, get};
use crate::messages::{Broken, Ended, Phase, Preflight, Settings, Snapshot, ToPage, ToWorker};
use crate::page::words::{self, Words};
use crate::volunteer::Volunteer;

/// A worker that was told to stop has this long to leave by itself, in milliseconds; then it is ended.
const STOP_WAIT_MS: f64 = 3_000.0;

/// How long a tab that was loaded anew waits for the lock of its former self, in milliseconds.
const LOCK_WAIT_MS: f64 = 500.0;

thread_local! {
    static VOLUNTEER: RefCell<Option<Volunteer>> = const { RefCell::new(None) };
    static LOCK: RefCell<Option<Lock>> = const { RefCell::new(None) };
}

/// What the panel shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Panel {
    /// Nothing was clicked yet.
    First,
    /// Nothing can be, here and now.
    Barred(Words),
    /// The preflight, begun or done.
    Preflight,
    /// A volunteer.
    Work,
    /// Not a volunteer any more.
    Ended(Ended),
    /// Something broke in the worker.
    Broken(Broken),
}

/// All that the page shows and asks.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// The run, once asked for.
    pub(super) report: RwSignal<Option<Arc<RunReport>>>,
    /// The host does not answer.
    pub(super) host_away: RwSignal<bool>,
    /// What the panel shows.
    pub(super) panel: RwSignal<Panel>,
    /// What the person lends.
    pub(super) settings: RwSignal<Settings>,
    /// What the preflight found so far.
    pub(super) found: RwSignal<Preflight>,
    /// How the volunteer stands.
    pub(super) snapshot: RwSignal<Snapshot>,
    /// Whether the person asked for a pause.
    pub(super) pausing: RwSignal<bool>,
    /// Whether the person asked to stop.
    pub(super) stopping: RwSignal<bool>,
}

impl State {
    /// As the page begins. Where this browser cannot take part, that is known now.
    pub(super) fn new() -> Self {
        let state = Self {
            report: RwSignal::new(None),
            host_away: RwSignal::new(false),
            panel: RwSignal::new(barrier().map_or(Panel::First, Panel::Barred)),
            settings: RwSignal::new(kept::settings()),
            found: RwSignal::new(Preflight::default()),
            snapshot: RwSignal::new(Snapshot::default()),
            pausing: RwSignal::new(false),
            stopping: RwSignal::new(false),
        };
        Effect::new(move |_| {
            let settings = state.settings.get();
            kept::keep(&settings);
            tell(ToWorker::Settings { settings });
        });
        let resumes =
            state.panel.get_untracked() == Panel::First && kept::contributed_before_reload();
        let finishing =
            Memo::new(move |_| state.snapshot.with(|now| now.phase == Phase::Finishing));
        Effect::new(move |_| {
            let works = state.panel.get() == Panel::Work;
            let asked_to_rest = state.pausing.get() || state.stopping.get() || finishing.get();
            state.expect_return(works && !asked_to_rest);
        });
        if resumes {
            state.contribute();
        }
        // A page that the browser had put aside: its worker left when it did.
        let shown = Listener::new(&window(), "pageshow", move |event| {
            let put_aside = get(&event, "persisted").as_bool() == Some(true);
            if put_aside && state.panel.get_untracked() == Panel::Work {
                drop(VOLUNTEER.take());
                drop(LOCK.take());
                state.contribute();
            }
        });
        // It lives as long as the page does.
        std::mem::forget(shown);
        state
    }

    /// Whether the run has reached its length.
    pub(super) fn over(&self) -> bool {
        self.report.with(|report| {
            report
                .as_ref()
                .is_some_and(|report| report.state == words::OVER)
        })
    }

    /// Loads the worker and lets it look at this computer.
    pub(super) fn check(self) {
        self.found.set(Preflight::default());
        self.panel.set(Panel::Preflight);
        if self.open() {
            self.look();
        }
    }

    /// Looks again: something was changed that the last look depends on.
    pub(super) fn look(self) {
        let settings = self.settings.get_untracked();
        let link = link();
        tell(ToWorker::Preflight { link, settings });
    }

    /// Takes part, unless another tab of this browser does.
    pub(super) fn contribute(self) {
        spawn_local(async move {
            let mut lock = Lock::take(false).await;
            if lock.is_none() {
                // After a reload the lock may be a moment behind.
                pause(LOCK_WAIT_MS).await;
                lock = Lock::take(false).await;
            }
            let Some(lock) = lock else {
                self.end_worker();
                self.panel.set(Panel::Barred(words::OTHER_TAB));
                self.wait_for_other_tab().await;
                return;
            };
            LOCK.set(Some(lock));
            if !self.open() {
                return;
            }
            kept::ask_to_keep();
            self.snapshot.set(Snapshot::default());
            self.pausing.set(false);
            self.stopping.set(false);
            self.panel.set(Panel::Work);
            let settings = self.settings.get_untracked();
            let link = link();
            tell(ToWorker::Start { link, settings });
            keep_awake(true);
        });
    }

    /// Notes whether this page contributes: after a reload it goes on by itself, and its seat is kept meanwhile.
    fn expect_return(self, contributes: bool) {
        kept::note_contributing(contributes);
        VOLUNTEER.with_borrow(|volunteer| {
            if let Some(volunteer) = volunteer {
                volunteer.expect_return(contributes);
            }
        });
    }

    async fn wait_for_other_tab(self) {
        drop(Lock::take(true).await);
        if self.panel.get_untracked() == Panel::Barred(words::OTHER_TAB) {
            self.panel.set(Panel::First);
        }
    }

    /// Rests, or goes on.
    pub(super) fn pause(self, pause: bool) {
        self.pausing.set(pause);
        tell(if pause {
            ToWorker::Pause
        } else {
            ToWorker::Resume
        });
        keep_awake(!pause);
    }

    /// Leaves after the round.
    pub(super) fn finish(self) {
        tell(ToWorker::Finish);
    }

    /// Leaves now.
    pub(super) fn stop(self) {
        self.stopping.set(true);
        tell(ToWorker::Stop);
        spawn_local(async move {
            pause(STOP_WAIT_MS).await;
            // It may have ended and begun anew in the meantime.
            if self.stopping.get_untracked() && self.panel.get_untracked() == Panel::Work {
                self.end_worker();
                self.panel.set(Panel::Ended(Ended::Stopped));
            }
        });
    }

    /// Back to the beginning.
    pub(super) fn leave(self) {
        self.end_worker();
        self.panel.set(Panel::First);
    }

    /// Loads the worker if there is none. Whether there is one.
    fn open(self) -> bool {
        if VOLUNTEER.with_borrow(Option::is_some) {
            return true;
        }
        let meta = document().query_selector("meta[name=shoal-worker]");
        let url = meta
            .ok()
            .flatten()
            .and_then(|meta| meta.get_attribute("content"));
        let opened = url
            .ok_or_else(|| "the page names no worker".to_owned())
            .and_then(|url| Volunteer::open(&url, move |message| self.hear(message)));
        match opened {
            Ok(volunteer) => {
                VOLUNTEER.set(Some(volunteer));
                true
            }
            Err(reason) => {
                self.panel.set(Panel::Ended(Ended::Device { reason }));
                false
            }
        }
    }

    fn hear(self, message: ToPage) {
        match message {
            ToPage::Preflight(found) => self.found.set(*found),
            ToPage::Snapshot(snapshot) => {
                keep_awake(!matches!(snapshot.phase, Phase::Paused));
                self.snapshot.set(*snapshot);
            }
            ToPage::Ended(end) => {
                self.end_worker();
                self.panel.set(Panel::Ended(end));
            }
            ToPage::Broken(broken) => {
                self.end_worker();
                self.panel.set(Panel::Broken(broken));
            }
            // The volunteer's own side of the page acts on these.
            ToPage::Ready { .. }
            | ToPage::Rtc(_)
            | ToPage::ChannelsOpen(_)
            | ToPage::ChannelClosed(_)
            | ToPage::OpenDevice(_)
            | ToPage::CloseDevice(_)
            | ToPage::IceServers { .. }
            | ToPage::Reach { .. } => {}
        }
    }

    /// Ends the worker and gives the lock back.
    fn end_worker(self) {
        // Later: this may be called by the worker's own message.
        spawn_local(async {
            drop(VOLUNTEER.take());
            drop(LOCK.take());
        });
    }
}

/// Tells the worker, if there is one.
pub(super) fn tell(message: ToWorker) {
    VOLUNTEER.with_borrow(|volunteer| {
        if let Some(volunteer) = volunteer {
            volunteer.tell(message);
        }
    });
}

fn keep_awake(awake: bool) {
    VOLUNTEER.with_borrow(|volunteer| {
        if let Some(volunteer) = volunteer {
            volunteer.keep_awake(awake);
        }
    });
}

/// Waits some milliseconds.
pub(super) async fn pause(milliseconds: f64) {
    let (done, wait) = futures_channel::oneshot::channel::<()>();
    set_timeout(
        move || {
            let _ = done.send(());
        },
        std::time::Duration::from_secs_f64(milliseconds.max(0.0) / 1e3),
    );
    // Sent by the timer, or dropped with it.
    let _ = wait.await;
}

/// The host's address, with a slash at its end.
fn link() -> String {
    let origin = window().location().origin();
    format!("{}/", origin.expect("a page has an origin"))
}

/// What keeps this browser from taking part, whatever the person does here.
fn barrier() -> Option<Words> {
    let has = |name| !get(&window(), name).is_undefined();
    if get(&window(), "isSecureContext").as_bool() == Some(false) {
        Some(words::NEEDS_HTTPS)
    } else if !has("RTCPeerConnection") {
        Some(words::NO_WEBRTC)
    } else if !has("Worker") {
        Some(words::NO_WORKERS)
    } else {
        None
    }
}
