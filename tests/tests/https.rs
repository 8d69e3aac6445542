//! A host that serves https by itself, under a certificate of a private authority.
//!
//! Authority and certificates are made here. Volunteers trust the authority as any program on Linux does,
//! by `SSL_CERT_FILE`; one that was not told of it does not get in.

use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tests::community::{ROUND_WAIT_MAX, Small};
use tests::paths;
use tests::process::Program;
use tests::run::{Host, HostOptions};

/// For a volunteer to give up a host that it does not trust.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(60);

/// Certificates in a folder: the authority's, and the host's with its key.
struct Papers(TempDir);

impl Papers {
    fn new() -> Self {
        let papers = Self(TempDir::new().expect("a folder"));
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate");
        papers.write("authority.pem", &authority.pem());
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("an address is a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        papers.write("host.pem", &certificate.pem());
        papers.write("key.pem", &key.serialize_pem());
        papers.write("text.txt", &"All the fish swim together.\n".repeat(2_000));
        papers
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    fn host(&self) -> Host {
        let flags = ["--tls-cert", "host.pem", "--tls-key", "key.pem"];
        let arguments = flags.map(|flag| match flag.ends_with(".pem") {
            true => self.path(flag),
            false => flag.to_owned(),
        });
        let options = HostOptions {
            config: Small::default().config(),
            data: self.path("text.txt").into(),
            port: 0,
            arguments: arguments.to_vec(),
        };
        Host::start(options).expect("a host starts")
    }

    fn volunteer(&self, host: &Host, name: &str, trusted: &str) -> Program {
        let mut command = Command::new(paths::program("shoal").expect("shoal is built"));
        command
            .args(["join", host.url(), "--gpu", "cpu", "--log-format", "json"])
            .args(["--identity-path", &self.path(&format!("{name}.key"))])
            .env("SSL_CERT_FILE", self.path(trusted));
        Program::start(name, &mut command).expect("a volunteer starts")
    }
}

#[test]
fn a_run_goes_over_https_for_those_who_trust_the_hosts_certificate() {
    let papers = Papers::new();
    let mut host = papers.host();
    assert!(
        host.url().starts_with("https://127.0.0.1:"),
        "{}",
        host.url()
    );

    let mut stranger = papers.volunteer(&host, "stranger", "host.pem");
    let error = stranger
        .wait_for("an error", REFUSAL_WAIT_MAX, |event| {
            event["event"] == "error"
        })
        .expect("it gives up");
    let text = error.to_string();
    assert!(text.contains("certificate"), "{text}");
    let ended = stranger.wait_end(REFUSAL_WAIT_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(13), "the network is at fault");

    let _volunteers =
        ["anchovy", "herring"].map(|name| papers.volunteer(&host, name, "authority.pem"));
    let committed = host
        .program()
        .wait_for("a commit", ROUND_WAIT_MAX, |event| {
            event["event"] == "commit" && event["round"].as_u64() >= Some(2)
        });
    committed.expect("rounds are committed: sockets, data and copies go over TLS");
}

#[test]
fn a_host_says_what_is_wrong_with_its_certificate() {
    let papers = Papers::new();
    papers.write("run.toml", &Small::default().config());
    let other = KeyPair::generate().expect("a key");
    papers.write("other.pem", &other.serialize_pem());
    let output = Command::new(paths::program("shoal-host").expect("shoal-host is built"))
        .args([&papers.path("run.toml"), "--data", &papers.path("text.txt")])
        .args(["--store", &papers.path("store"), "--port", "0"])
        .args([
            "--tls-cert",
            &papers.path("host.pem"),
            "--tls-key",
            &papers.path("other.pem"),
        ])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("do not fit together"), "{said}");
}
