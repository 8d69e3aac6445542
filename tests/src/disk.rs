//! A disk that is so small that a test can fill it: a tmpfs which only those see whom the test lets in.
//!
//! A program holds the disk: it lives in a mount namespace of its own, and the disk goes with it, whatever becomes of
//! the test. Another program works on it by entering that namespace ([`SmallDisk::wrapper`]); the test looks at it
//! through `/proc` ([`SmallDisk::seen`]). Needs root or user namespaces, and util-linux.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::process::Program;

/// For a namespace to be made and the disk to be mounted.
const MOUNT_WAIT_MAX: Duration = Duration::from_secs(20);
/// What the disk is filled with, a piece at a time.
const PIECE: [u8; 4096] = [7; 4096];
/// Mounts the disk, says so, and stays. The first argument is its size in bytes, the second where.
const HOLD: &str =
    r#"mount -t tmpfs -o size="$1" tmpfs "$2" && echo '{"event":"mounted"}' && exec sleep 1800"#;

/// The disk.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Program,
    /// Where it is mounted, for those inside.
    folder: TempDir,
}

impl SmallDisk {
    /// Makes a disk of so many bytes.
    ///
    /// # Errors
    /// This machine does not let us; the message holds what it said.
    pub fn mount(size_bytes: u64) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("shoal-disk-").tempdir()?;
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["sh", "-c", HOLD, "sh", &size_bytes.to_string()])
            .arg(folder.path());
        let mut holder = Program::start("the disk's holder", &mut command)?;
        holder.wait_for("mount", MOUNT_WAIT_MAX, |event| event["event"] == "mounted")?;
        Ok(Self { holder, folder })
    }

    /// Its root, for programs that the wrapper runs.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its root, for this program.
    #[must_use]
    pub fn seen(&self) -> PathBuf {
        let outside = format!("/proc/{}/root", self.holder.id());
        let inside = self.path().strip_prefix("/").unwrap_or(self.path());
        Path::new(&outside).join(inside)
    }

    /// What runs a program that is to work on the disk. It becomes that program: signals reach it.
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        let mut words = vec!["nsenter", "--target", &target, "--mount"];
        if !geteuid().is_root() {
            words.extend(["--user", "--preserve-credentials"]);
        }
        words.push("--");
        words.into_iter().map(str::to_owned).collect()
    }

    /// Fills it until `left_bytes` are free.
    ///
    /// # Errors
    /// The system says something else than that it is full.
    pub fn fill(&self, left_bytes: u64) -> anyhow::Result<()> {
        let path = self.ballast();
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut filled_bytes = 0_u64;
        loop {
            match file.write(&PIECE) {
                Ok(0) => bail!("{} takes nothing and says nothing", path.display()),
                Ok(written) => filled_bytes += written as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        file.set_len(filled_bytes.saturating_sub(left_bytes))?;
        Ok(())
    }

    /// Frees what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// It was not filled.
    pub fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.seen().join("ballast")
    }
}

#[cfg(test)]
mod tests {
    use super::SmallDisk;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed_and_nobody_else_sees_it() {
        let disk = SmallDisk::mount(1 << 20).expect("this machine mounts a tmpfs");
        let file = disk.seen().join("file");
        disk.fill(0).expect("it fills");
        std::fs::write(&file, [1; 8192]).expect_err("it is full");
        disk.free().expect("it was filled");
        std::fs::write(&file, [1; 8192]).expect("there is room");
        disk.fill(64 << 10).expect("it fills");
        std::fs::write(&file, [1; 60 << 10]).expect("so much was left");
        assert!(!disk.path().join("file").exists(), "it is mounted for all");
    }
}
