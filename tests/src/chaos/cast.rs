//! Who takes part, and what can be done to them: headless volunteers at the ends of cables, tabs, the host.
//!
//! Does and undoes; when, and what follows from it, says `chaos`. Everybody keeps its key, so whoever comes again is known. A
//! tab opens in a thread of its own, because a page takes its time and faults go on meanwhile. Begin with [`Cast::gather`].

use std::fs::File;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;

use super::deed::{Deed, Kind};
use crate::browser::Browser;
use crate::community::{Community, Small};
use crate::lan::{HUB_ADDRESS, Lan};
use crate::process::{Program, Signal};
use crate::run::Place;
use crate::tab::{self, Lend, Tab};

/// Names of headless volunteers, and so their number at most.
pub const NAMES: [&str; 10] = [
    "anchovy", "herring", "sardine", "sprat", "pilchard", "mackerel", "smelt", "shad", "menhaden",
    "eulachon",
];

/// How often a page is opened before it is given up: it does not open while the host is away.
const TAB_TRIES_MAX: usize = 4;

/// Something that was said.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// By whom; the host is none.
    pub(super) by: Option<String>,
    /// What.
    pub(super) event: Value,
}

/// Everybody.
pub(super) struct Cast {
    pub(super) community: Community,
    natives: Vec<Native>,
    tabs: Vec<Seat>,
    /// Where it could be made.
    lan: Option<Lan>,
    logs: Option<PathBuf>,
    started: usize,
    /// What tabs said that is wrong, up to when they were closed.
    tab_errors: Vec<String>,
}

/// A headless volunteer.
struct Native {
    name: &'static str,
    /// What was done to it, and when that is over.
    away: Option<(Kind, Instant)>,
}

/// A tab's place.
enum Seat {
    /// For the first time, or after so many tries that failed.
    Opening(JoinHandle<anyhow::Result<Tab>>, usize),
    Here(Box<Tab>),
    Closed(Browser, Instant),
    /// It did not open.
    Lost,
}

impl Cast {
    /// Starts everybody, in the hub of `lan` if there is one.
    pub(super) fn gather(
        small: &Small,
        natives: usize,
        tabs: usize,
        lan: Option<Lan>,
        logs: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        ensure!(
            natives <= NAMES.len(),
            "{} headless volunteers at most",
            NAMES.len()
        );
        // For the ends of cables, too; tabs want localhost.
        let everywhere = ["--host", "0.0.0.0"].map(str::to_owned);
        let arguments = lan.iter().flat_map(|_| everywhere.clone()).collect();
        let community = match tabs {
            0 => Community::gather_with(small, arguments, &[])?,
            _ => tab::gather_with(small, arguments, &[])?,
        };
        let mut cast = Self {
            community,
            natives: vec![],
            tabs: vec![],
            lan,
            logs,
            started: 0,
            tab_errors: vec![],
        };
        cast.log_host()?;
        for &name in &NAMES[..natives] {
            cast.natives.push(Native { name, away: None });
            cast.start(cast.natives.len() - 1)?;
        }
        cast.tabs = (0..tabs).map(|_| cast.opening(None, 0)).collect();
        Ok(cast)
    }

    /// A page that opens, in its old browser or a new one.
    fn opening(&self, browser: Option<Browser>, failed: usize) -> Seat {
        let url = self.community.host.url().to_owned();
        let open = move || {
            let how = Lend::default();
            let tab = match browser {
                Some(browser) => Tab::open_in(browser, &url, &how),
                None => Tab::open(&url, &how),
            };
            tab?.lending()
        };
        Seat::Opening(std::thread::spawn(open), failed)
    }

    /// Starts a headless volunteer, for the first time or again.
    fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.natives[index].name;
        let place = self.lan.as_ref().map(|lan| Place {
            wrapper: lan.wrapper(index),
            address: Some(HUB_ADDRESS.to_owned()),
        });
        let place = place.unwrap_or_default();
        let mut program = self.community.host.volunteer_at(name, &[], &place)?;
        if let Some(log) = self.log(name)? {
            program.keep_log(log);
        }
        self.community.volunteers.push(program);
        self.natives[index].away = None;
        Ok(())
    }

    /// A file for what a program says from its start on.
    fn log(&mut self, name: &str) -> anyhow::Result<Option<File>> {
        let Some(folder) = &self.logs else {
            return Ok(None);
        };
        std::fs::create_dir_all(folder)?;
        self.started += 1;
        let path = folder.join(format!("{:03}-{name}.log", self.started));
        Ok(Some(File::create(path)?))
    }

    /// Kinds of deeds that can be done here.
    pub(super) fn can(&self, kind: Kind) -> bool {
        match kind {
            Kind::Kill | Kind::Freeze | Kind::Host => true,
            Kind::Partition => self.lan.is_some(),
            Kind::Tab => !self.tabs.is_empty(),
        }
    }

    /// Does it, and gives to whom and what that one did; none where nobody is there for it.
    pub(super) fn commit(&mut self, deed: &Deed) -> anyhow::Result<Option<(String, String)>> {
        if !self.can(deed.kind) {
            return Ok(None);
        }
        match deed.kind {
            Kind::Kill | Kind::Freeze | Kind::Partition => self.hit_native(deed),
            Kind::Host => {
                self.community.host.program().kill()?;
                // Time passes for everybody else.
                let until = Instant::now() + deed.away;
                self.hear_volunteers(until);
                self.restart_host()?;
                Ok(Some(("the host".to_owned(), "host".to_owned())))
            }
            Kind::Tab => self.close_tab(deed),
        }
    }

    fn restart_host(&mut self) -> anyhow::Result<()> {
        self.community.host.restart()?;
        self.log_host()
    }

    fn log_host(&mut self) -> anyhow::Result<()> {
        if let Some(log) = self.log("host")? {
            self.community.host.program().keep_log(log);
        }
        Ok(())
    }

    fn hit_native(&mut self, deed: &Deed) -> anyhow::Result<Option<(String, String)>> {
        let run = self.community.host.api()?;
        let role = |name: &str| state_of(&run, name).unwrap_or("absent");
        let all = self.natives.iter().enumerate();
        let here: Vec<usize> = all
            .filter(|(_, native)| native.away.is_none())
            .map(|(index, _)| index)
            .collect();
        let seated = here.iter().copied();
        let seated: Vec<usize> = seated
            .filter(|&index| role(self.natives[index].name) == "seated")
            .collect();
        let among = if deed.seated && !seated.is_empty() {
            seated
        } else {
            here
        };
        if among.is_empty() {
            return Ok(None);
        }
        let index = among[deed.pick % among.len()];
        let name = self.natives[index].name;
        match deed.kind {
            Kind::Kill => {
                self.community.volunteer(name)?.kill()?;
                self.community.volunteers.retain(|one| one.name() != name);
            }
            Kind::Freeze => self.community.volunteer(name)?.signal(Signal::STOP)?,
            Kind::Partition => self.lan()?.pull(index)?,
            Kind::Host | Kind::Tab => {}
        }
        self.natives[index].away = Some((deed.kind, Instant::now() + deed.away));
        Ok(Some((name.to_owned(), role(name).to_owned())))
    }

    fn close_tab(&mut self, deed: &Deed) -> anyhow::Result<Option<(String, String)>> {
        let here: Vec<usize> = (0..self.tabs.len())
            .filter(|&index| matches!(self.tabs[index], Seat::Here(_)))
            .collect();
        if here.is_empty() {
            return Ok(None);
        }
        let index = here[deed.pick % here.len()];
        let Seat::Here(mut tab) = std::mem::replace(&mut self.tabs[index], Seat::Lost) else {
            return Ok(None);
        };
        let now = tab
            .page
            .evaluate("(__told.snapshot ?? {}).phase ?? 'unknown'");
        let phase = now?.as_str().unwrap_or("unknown").to_owned();
        self.tab_errors.extend(tab.page.errors()?);
        let Tab { page, browser } = *tab;
        page.close()?;
        self.tabs[index] = Seat::Closed(browser, Instant::now() + deed.away);
        Ok(Some((format!("tab {}", index + 1), phase)))
    }

    fn lan(&self) -> anyhow::Result<&Lan> {
        self.lan.as_ref().context("there are cables")
    }

    /// Undoes what is over, and takes in tabs that have opened; gives what was done.
    pub(super) fn undo(&mut self) -> anyhow::Result<Vec<String>> {
        let mut done = Vec::new();
        let now = Instant::now();
        for index in 0..self.natives.len() {
            let name = self.natives[index].name;
            let over = self.natives[index].away.filter(|(_, until)| *until <= now);
            let Some((kind, _)) = over else { continue };
            self.natives[index].away = None;
            done.push(match kind {
                Kind::Kill => {
                    self.start(index)?;
                    format!("{name} starts again")
                }
                Kind::Partition => {
                    self.lan()?.plug(index)?;
                    format!("{name}'s cable is plugged in again")
                }
                Kind::Freeze | Kind::Host | Kind::Tab => {
                    self.community.volunteer(name)?.signal(Signal::CONT)?;
                    format!("{name} goes on")
                }
            });
        }
        for index in 0..self.tabs.len() {
            done.extend(self.turn_tab(index, now));
        }
        Ok(done)
    }

    fn turn_tab(&mut self, index: usize, now: Instant) -> Option<String> {
        let number = index + 1;
        let (next, said) = match std::mem::replace(&mut self.tabs[index], Seat::Lost) {
            Seat::Opening(opening, failed) if opening.is_finished() => match joined(opening) {
                Ok(tab) => (Seat::Here(Box::new(tab)), format!("tab {number} lends")),
                Err(error) => {
                    let again = failed + 1 < TAB_TRIES_MAX;
                    let next = if again {
                        self.opening(None, failed + 1)
                    } else {
                        Seat::Lost
                    };
                    (next, format!("tab {number} did not open: {error:#}"))
                }
            },
            Seat::Closed(browser, until) if until <= now => {
                let opening = self.opening(Some(browser), 0);
                (opening, format!("tab {number} is opened again"))
            }
            same @ (Seat::Opening(..) | Seat::Here(_) | Seat::Closed(..) | Seat::Lost) => {
                self.tabs[index] = same;
                return None;
            }
        };
        self.tabs[index] = next;
        Some(said)
    }

    /// Whether everybody is as at the beginning, as far as it is ours to see to.
    pub(super) fn is_whole(&self) -> bool {
        let natives = self.natives.iter().all(|native| native.away.is_none());
        let moves = |tab: &Seat| matches!(tab, Seat::Opening(..) | Seat::Closed(..));
        natives && !self.tabs.iter().any(moves)
    }

    /// Tabs that did not open.
    pub(super) fn tabs_lost(&self) -> usize {
        let lost = |tab: &&Seat| matches!(tab, Seat::Lost);
        self.tabs.iter().filter(lost).count()
    }

    /// Who does not take part, as the host lists it.
    pub(super) fn missing(&self, run: &Value) -> Vec<String> {
        let is_back = |name: &&str| matches!(state_of(run, name), Some("seated" | "spare"));
        let names = self.natives.iter().map(|native| native.name);
        let mut missing: Vec<String> = names
            .filter(|name| !is_back(name))
            .map(str::to_owned)
            .collect();
        let listed = run["volunteers"].as_array().into_iter().flatten();
        let tabs = listed
            .filter(|one| one["kind"] == "browser" && one["state"] != "away")
            .count();
        if tabs != self.tabs.len() {
            missing.push(format!(
                "{} of {} tabs",
                self.tabs.len() - tabs.min(self.tabs.len()),
                self.tabs.len()
            ));
        }
        missing
    }

    /// What was said up to `deadline`: waits for the host's next event, and takes everybody's.
    pub(super) fn hear(&mut self, deadline: Instant) -> Vec<Heard> {
        let host = self.community.host.program();
        let mut heard = Vec::new();
        let mut until = deadline;
        while let Some(event) = host.next_event(until) {
            heard.push(Heard { by: None, event });
            until = Instant::now();
        }
        heard.extend(self.hear_volunteers(Instant::now()));
        heard
    }

    /// The same of volunteers alone; waits until `deadline`, or not at all where nobody is left.
    fn hear_volunteers(&mut self, deadline: Instant) -> Vec<Heard> {
        let mut heard = Vec::new();
        for volunteer in &mut self.community.volunteers {
            while let Some(event) = volunteer.next_event(deadline) {
                let by = Some(volunteer.name().to_owned());
                heard.push(Heard { by, event });
            }
        }
        heard
    }

    /// Starts again whoever ended by itself; gives what they said.
    pub(super) fn bury(&mut self) -> anyhow::Result<Vec<String>> {
        let mut ended = Vec::new();
        if self.community.host.program().has_ended()? {
            ended.push(self.community.host.program().said());
            self.restart_host()?;
        }
        let mut index = 0;
        while index < self.community.volunteers.len() {
            let volunteer = &mut self.community.volunteers[index];
            if !volunteer.has_ended()? {
                index += 1;
                continue;
            }
            while volunteer.next_event(Instant::now()).is_some() {}
            ended.push(volunteer.said());
            let name = self.community.volunteers.remove(index).name().to_owned();
            let native = self.natives.iter().position(|one| one.name == name);
            let native = native.context("it is one of ours")?;
            if let Some((Kind::Partition, _)) = self.natives[native].away {
                self.lan()?.plug(native)?;
            }
            self.start(native)?;
        }
        Ok(ended)
    }

    /// What tabs have said that is wrong; they end.
    pub(super) fn tab_errors(&mut self) -> Vec<String> {
        let mut errors = std::mem::take(&mut self.tab_errors);
        for tab in self.tabs.drain(..) {
            if let Seat::Here(mut tab) = tab {
                errors.extend(tab.page.errors().unwrap_or_default());
            }
        }
        errors
    }

    /// Programs of headless volunteers, for their keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.natives.iter().map(|native| native.name)
    }

    /// What everybody said last, for the message of a failure.
    pub(super) fn said(&mut self) -> String {
        let volunteers = self.community.said();
        format!(
            "{}\n{volunteers}",
            Program::said(self.community.host.program())
        )
    }
}

impl Drop for Cast {
    fn drop(&mut self) {
        // A frozen program ends all the same; a tab that still opens ends with its thread.
        for tab in self.tabs.drain(..) {
            if let Seat::Opening(opening, _) = tab {
                drop(joined(opening));
            }
        }
    }
}

fn joined(opening: JoinHandle<anyhow::Result<Tab>>) -> anyhow::Result<Tab> {
    opening.join().map_err(|_| anyhow!("its thread failed"))?
}

/// What a headless volunteer does, as the host lists it.
fn state_of<'a>(run: &'a Value, name: &str) -> Option<&'a str> {
    let mut listed = run["volunteers"].as_array()?.iter();
    listed.find(|one| one["name"] == name)?["state"].as_str()
}
