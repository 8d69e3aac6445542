//! Why `shoal` ends: an exit code that scripts can rely on, and words for people.
//!
//! A failure says what happened and why, and what to do about it. Codes are part of the command
//! line's contract and are listed in its help.

use std::fmt;
use std::process::ExitCode;

use shared::wire::signal::RefuseCode;

/// The exit codes of `shoal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Something on this machine went wrong.
    Failed = 1,
    /// The command line or the settings file make no sense.
    Usage = 2,
    /// The host runs another version.
    Version = 10,
    /// The host does not let us in.
    Refused = 11,
    /// There is no device to compute with, or it failed.
    NoDevice = 12,
    /// The host cannot be reached.
    Network = 13,
    /// The run has reached its end.
    Over = 14,
    /// Stopped by a second Ctrl-C.
    Stopped = 130,
}

/// Why a command did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub code: Code,
    /// What happened, and why.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Failure {
    /// A failure of that code.
    pub fn new(code: Code, what: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self {
            code,
            what: what.to_string(),
            remedy: remedy.into(),
        }
    }

    /// The host's refusal.
    pub fn refused(code: RefuseCode, text: impl fmt::Display, remedy: impl Into<String>) -> Self {
        let code = match code {
            RefuseCode::Version => Code::Version,
            RefuseCode::Over => Code::Over,
            RefuseCode::SeedHash
            | RefuseCode::Proof
            | RefuseCode::Session
            | RefuseCode::Full
            | RefuseCode::Invite
            | RefuseCode::Removed
            | RefuseCode::Malformed => Code::Refused,
        };
        Self::new(code, text, remedy)
    }

    /// The code for the operating system.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<crate::host::HostError> for Failure {
    fn from(error: crate::host::HostError) -> Self {
        use crate::host::HostError as E;
        let remedy = match &error {
            E::Unreachable { reason, .. } if reason.contains("certificate") => {
                "Check this machine's clock, and open the host's page in a browser: if that complains, too, its \
                 certificate must be replaced."
            }
            E::Unreachable { reason, .. } if reason.contains("corrupt message") => {
                "Something answers there without encryption: try the link with http:// instead of https://."
            }
            E::Unreachable { .. } => {
                "Check the link, and that the host is up: its page should open in a browser."
            }
            E::Status { status: 404, .. } | E::Format { .. } => {
                "Check the link: it should be the one that the host printed when it started."
            }
            E::Status { .. } | E::Length { .. } | E::Hash { .. } | E::Path { .. } => {
                "Try again; if it stays so, tell the host."
            }
        };
        Self::new(Code::Network, error, remedy)
    }
}

impl From<crate::identity::IdentityError> for Failure {
    fn from(error: crate::identity::IdentityError) -> Self {
        // What to do is part of each of its texts.
        Self::new(Code::Failed, error, "")
    }
}

impl From<shared::model::device::DeviceError> for Failure {
    fn from(error: shared::model::device::DeviceError) -> Self {
        Self::new(
            Code::NoDevice,
            error,
            "Use --gpu cpu, or one of the devices that `shoal doctor` lists.",
        )
    }
}
