//! Worlds without faults, for whoever measures, and for tests that bring their own.

use super::audit::Auditor;
#[cfg(test)]
use super::network::ProcessId;
use super::summary::Failure;
use super::world::{Event, Sabotage, World};
use crate::config::run::RunConfig;
use crate::units::{Span, Time};

impl World {
    #[cfg(test)]
    /// A world without faults, as it is drawn but for pipelines: one.
    pub(super) fn quiet(seed: u64) -> Self {
        Self::quiet_with(seed, Sabotage::default(), |_| ())
    }

    /// A world without faults, whose host stores only its first rounds: of a single pipeline, unless `edit` says otherwise.
    pub(super) fn quiet_with(
        seed: u64,
        sabotage: Sabotage,
        edit: impl FnOnce(&mut RunConfig),
    ) -> Self {
        let mut world = Self::new(seed, sabotage);
        world.config.schedule.pipelines_max = 1;
        edit(&mut world.config);
        world.config.schedule.checkpoint = Span::from_secs(3_600);
        world.auditor = Auditor::new(world.config.clone());
        world.faults_until = Time::ZERO;
        // Texts take their time between the jobs that are measured here.
        world
            .events
            .retain(|_, event| !matches!(event, Event::Wanted));
        world
    }

    #[cfg(test)]
    /// Who sits at a seat, the head being the first.
    pub(super) fn seated(&self, seat: usize) -> Option<ProcessId> {
        let (_, seats) = self.host.as_ref()?.history().line_ups().values().next()?;
        self.numbers.get(&seats.get(seat)?.peer).copied()
    }

    /// Runs until `is_done`.
    ///
    /// # Errors
    /// A rule was broken, or it takes longer than `bound`.
    pub(super) fn run_until(
        &mut self,
        bound: Span,
        is_done: impl Fn(&Self) -> bool,
    ) -> Result<(), Failure> {
        let end = self.now + bound;
        while !is_done(self) {
            let Some(((at, _), event)) = self.events.pop_first().filter(|((at, _), _)| *at < end)
            else {
                let state = self.host.as_ref().map(|host| host.view());
                return Err(self.failure(format!("it takes too long: {state:#?}")));
            };
            self.now = at;
            self.happen(event)?;
        }
        Ok(())
    }
}
