//! What happens to volunteers, in words: for the person who hosts the run and for whoever reads the host's events.
//!
//! Nothing follows from an incident. What does follow is decided where it is raised (`door`, `lineups`).

use crate::limits::{SILENCE_MAX, STRIKES_MAX, SUSPECT_ANSWER_MAX};
use crate::units::{PeerId, StageId};

/// Something that happened to a volunteer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its number.
    pub peer: PeerId,
    /// Its name.
    pub name: String,
    /// What happened.
    pub what: What,
}

/// What can happen to a volunteer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was let in.
    Joined,
    /// It wants to leave after the round.
    Finishing,
    /// It left after a round, as it wanted to.
    Finished,
    /// It left at once.
    Left,
    /// Its connection broke and did not come back in time.
    Gone,
    /// Nothing was heard of it for too long.
    Silent,
    /// Its device does not answer, says it: it gives up its seat.
    Hung,
    /// It said what is no message.
    Malformed,
    /// It made a number that is not finite from finite input.
    NonFinite {
        /// In which stage.
        stage: StageId,
        /// What it has done of such things, this included.
        strikes: u32,
    },
    /// It was given a number that is not finite.
    MetNonFinite {
        /// In which stage.
        stage: StageId,
    },
    /// It sent a neighbour what no correct build sends.
    MalformedFrame {
        /// Name of whoever got it.
        to: String,
        /// What follows.
        sequel: Sequel,
    },
}

/// What follows when somebody tells of a broken frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequel {
    /// Their link is closed and may be opened again; where they are neighbours, the round starts again.
    Again,
    /// The same neighbour told of another one: either may lie, so the two are placed apart.
    Apart,
    /// A second one told of one.
    Removed,
}

impl What {
    /// A word for programs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Finishing => "finishing",
            Self::Finished => "finished",
            Self::Left => "left",
            Self::Gone => "gone",
            Self::Silent => "silent",
            Self::Hung => "hung",
            Self::Malformed => "malformed",
            Self::NonFinite { .. } => "non_finite",
            Self::MetNonFinite { .. } => "met_non_finite",
            Self::MalformedFrame { .. } => "malformed_frame",
        }
    }
}

impl std::fmt::Display for Incident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.name;
        let silence = SILENCE_MAX.as_secs_f64();
        let answer = SUSPECT_ANSWER_MAX.as_secs_f64();
        match &self.what {
            What::Joined => write!(f, "{name} joined"),
            What::Finishing => write!(f, "{name} leaves after this round"),
            What::Finished => write!(f, "{name} left after its round; nothing is lost"),
            What::Left => write!(f, "{name} left at once"),
            What::Gone => write!(f, "{name} is gone: its connection broke"),
            What::Silent => write!(
                f,
                "{name} is gone: silent for {silence} s, or for {answer} s after a neighbour lost it"
            ),
            What::Hung => write!(
                f,
                "{name} gives up its seat: its device does not answer; the round starts again"
            ),
            What::Malformed => write!(f, "{name} said what is no message, and is removed"),
            What::NonFinite { stage, strikes } => {
                write!(
                    f,
                    "{name} made a number that is not finite in stage {stage}, from finite input: nothing of it is \
                     applied, and the round starts again; "
                )?;
                f.write_str(if *strikes < STRIKES_MAX {
                    "the next time it loses its seat"
                } else {
                    "it gets no seat any more"
                })
            }
            What::MetNonFinite { stage } => write!(
                f,
                "{name} was given a number that is not finite for stage {stage}: the round starts again"
            ),
            What::MalformedFrame { to, sequel } => {
                write!(
                    f,
                    "{name} sent {to} what no correct build sends, says {to}: "
                )?;
                f.write_str(match sequel {
                    Sequel::Again => {
                        "their link is closed; if a second volunteer says so, it is removed"
                    }
                    Sequel::Apart => {
                        "their link is closed, and the two are neighbours no more for a while"
                    }
                    Sequel::Removed => "the second volunteer to say so: it is removed",
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn incidents_are_sentences_that_say_what_follows() {
        let stage = StageId(2);
        let told: Vec<String> = [
            What::Left,
            What::Silent,
            What::NonFinite { stage, strikes: 1 },
            What::NonFinite { stage, strikes: 2 },
            What::MalformedFrame {
                to: "herring".to_owned(),
                sequel: Sequel::Apart,
            },
        ]
        .map(|what| {
            let (peer, name) = (PeerId(1), "sardine".to_owned());
            Incident { peer, name, what }.to_string()
        })
        .into();
        expect![[r#"
            sardine left at once
            sardine is gone: silent for 8 s, or for 3 s after a neighbour lost it
            sardine made a number that is not finite in stage 2, from finite input: nothing of it is applied, and the round starts again; the next time it loses its seat
            sardine made a number that is not finite in stage 2, from finite input: nothing of it is applied, and the round starts again; it gets no seat any more
            sardine sent herring what no correct build sends, says herring: their link is closed, and the two are neighbours no more for a while"#]]
        .assert_eq(&told.join("\n"));
    }
}
