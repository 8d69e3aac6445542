//! A look at this machine and at the run, without taking part: what would compute, how fast, whom it could reach.
//!
//! Tells the page after each thing that it finds. What it makes on the way is used by the start that follows.

use futures_channel::oneshot;
use shared::config::run::RunConfig;
use shared::units::Span;
use shared::wire::frame::VERSION;
use shared::wire::signal::Down;

use super::clock::within;
use super::door::{self, Visitor};
use super::host::socket_url;
use super::port;
use super::remote::{Devices, Fitted, Remote};
use super::session::MEMORY_BYTES;
use super::socket::{HostSocket, SocketEvent};
use super::storage::Storage;
use crate::cost;
use crate::messages::{Preflight, Reachability, Settings, ToPage, Verdict};

/// How long the host may take to introduce itself.
const HELLO_MAX: Span = Span::from_secs(10);

/// What a start may use.
pub(super) struct Ready {
    pub(super) remote: Remote,
    /// What the device is called.
    pub(super) device: String,
    pub(super) fitted: Fitted,
}

/// Looks, and tells; gives what was made, if this machine can help. `reached` is the page's answer to
/// [`ToPage::Reach`].
pub(super) async fn look(
    link: &str,
    settings: &Settings,
    storage: &Storage,
    devices: &Devices,
    reached: oneshot::Receiver<Reachability>,
) -> Option<Ready> {
    let mut found = Preflight::default();
    match find_out(link, settings, storage, devices, reached, &mut found).await {
        Ok(ready) => {
            say(&found);
            Some(ready)
        }
        Err(verdict) => {
            found.verdict = Some(verdict);
            say(&found);
            None
        }
    }
}

fn say(found: &Preflight) {
    port::say(&ToPage::Preflight(Box::new(found.clone())));
}

async fn find_out(
    link: &str,
    settings: &Settings,
    storage: &Storage,
    devices: &Devices,
    reached: oneshot::Receiver<Reachability>,
    found: &mut Preflight,
) -> Result<Ready, Verdict> {
    let memory_bytes = settings.memory_bytes.unwrap_or(MEMORY_BYTES);
    found.memory_bytes = Some(memory_bytes);
    let broken = |reason: String| {
        let remedy = "Choose the CPU, or another browser.";
        Verdict::cannot(format!("no device can be used: {reason}"), remedy)
    };
    let mut remote = devices.open();
    found.webgpu = Some(remote.webgpu().await.map_err(broken)?);
    say(found);
    let device = remote.device(settings.device).await.map_err(broken)?;
    found.device = Some(device.clone());
    say(found);
    let config = introduction(link).await?;
    let fitted = remote.fit(config.clone()).await;
    let fitted = fitted.map_err(|reason| {
        let remedy = "Choose the CPU instead of WebGPU, or lend less memory.";
        Verdict::cannot(
            format!("this device cannot run the model: {reason}"),
            remedy,
        )
    })?;
    let made = &fitted.made;
    found.block_us = Some(made.speed.block_us);
    found.derive_us = Some(made.derive.as_micros());
    found.seed_hash = Some(made.seed_hash.to_string());
    found.cost = cost::estimate(
        &config,
        made.speed.block_us,
        memory_bytes,
        settings.throttle_percent,
    );
    say(found);
    let visitor = Visitor {
        key: storage.identity().await.key,
        settings,
        device: &device,
        made,
    };
    let welcome = door::visit(link, &visitor).await?;
    let servers = welcome.ice_servers;
    port::say(&ToPage::Reach { servers });
    // A page that does not answer is gone.
    let reach = reached.await.unwrap_or_default();
    let verdict = cost::verdict(&config, memory_bytes, &reach, settings.relay_only);
    (found.reach, found.verdict) = (Some(reach), Some(verdict));
    Ok(Ready {
        remote,
        device,
        fitted,
    })
}

/// The run's configuration, as the host tells everybody who knocks.
async fn introduction(link: &str) -> Result<RunConfig, Verdict> {
    let remedy = "Check that the host is up, and reload the page.";
    let mut socket = HostSocket::open(socket_url(link));
    let hello = async {
        loop {
            match socket.next().await {
                SocketEvent::Message(message) => {
                    if let Down::Hello {
                        version, config, ..
                    } = *message
                    {
                        return Ok((version, *config));
                    }
                }
                SocketEvent::Lost { reason, .. } => return Err(reason),
                SocketEvent::Open => {}
            }
        }
    };
    let outcome = within(HELLO_MAX, hello)
        .await
        .unwrap_or_else(|| Err("no answer in 10 s".to_owned()));
    let hello = outcome
        .map_err(|reason| Verdict::cannot(format!("the host cannot be reached: {reason}"), remedy));
    socket.close().await;
    let (version, config) = hello?;
    if version != VERSION {
        return Err(Verdict::cannot(
            format!("the host speaks version {version}, this page version {VERSION}"),
            "Reload the page.",
        ));
    }
    config.validate().map_err(|error| {
        Verdict::cannot(
            format!("the host's configuration is not valid: {error}"),
            "Tell whoever hosts this run.",
        )
    })?;
    Ok(config)
}
