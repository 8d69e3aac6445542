//! Ctrl-C and SIGTERM: the first asks to finish and leave, the second to leave at once.
//!
//! The second also starts a short deadline, after which the process ends whatever the driver does.

use std::time::Duration;

use futures_util::Stream;
use shared::driver::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::Notes;
use crate::failure::{Code, Failure};
use crate::report::Note;

/// How long leaving at once may take: enough to tell the host.
const STOP_MAX: Duration = Duration::from_millis(1_500);

/// Waits for the moment at which the process must end.
pub(super) struct Stopped(watch::Receiver<bool>);

impl Stopped {
    pub(super) async fn wait(&mut self) {
        if self.0.wait_for(|over| *over).await.is_err() {
            // Nobody listens for signals any more: they act as the system wants.
            std::future::pending::<()>().await;
        }
    }
}

/// Begins to listen. Gives what the driver should be told, and the last deadline.
///
/// # Errors
/// The system does not let us.
pub(super) fn listen(
    notes: Notes,
) -> Result<(impl Stream<Item = Command> + Send, Stopped), Failure> {
    let failed = |error| {
        Failure::new(
            Code::Failed,
            format!("signals cannot be received: {error}"),
            "",
        )
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (tell, commands) = mpsc::channel(2);
    let (over, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for command in [Command::Finish, Command::Stop] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if command == Command::Finish {
                notes.tell(Note::Finish);
            }
            // A driver that is gone needs no telling.
            let _ = tell.send(command).await;
        }
        // Whoever presses a third time does not want to wait.
        tokio::select! {
            () = tokio::time::sleep(STOP_MAX) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        over.send_replace(true);
        std::future::pending::<()>().await;
    });
    let stream = futures_util::stream::unfold(commands, |mut commands| async {
        commands.recv().await.map(|command| (command, commands))
    });
    Ok((stream, Stopped(stopped)))
}
