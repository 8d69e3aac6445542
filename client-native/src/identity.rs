//! Who this volunteer is: an Ed25519 key in a file, and a session that no other process has.
//!
//! The key file is made at the first start, readable by its owner alone. While a process runs it
//! holds a lock on the file; a second one uses the same key under its own session, and knows that
//! it must not touch state that the first one keeps on disk.
//!
//! Invariant: the secret key never leaves this module but as signatures.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};
use shared::units::Digest;

/// Bytes of an identity file, more than which is not read: 64 digits and a line's end.
const FILE_BYTES_MAX: u64 = 256;

/// A volunteer's key and session.
pub struct Identity {
    key: SigningKey,
    /// Drawn at random for this process.
    pub session: u64,
    /// Whether no other process uses this identity.
    pub exclusive: bool,
    /// Held open for its lock.
    _file: File,
}

/// Why there is no identity to join with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read or made.
    #[error(
        "the identity file {path} cannot be used: {source}. Choose another with --identity-path"
    )]
    File {
        /// Where it is, or should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path} does not hold an identity (64 hexadecimal digits). Move it away and a new one is made"
    )]
    Content {
        /// Where it is.
        path: PathBuf,
    },
    /// Others can read the file.
    #[error("{path} can be read by others. Run: chmod 600 {path}")]
    Exposed {
        /// Where it is.
        path: PathBuf,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Identity {
    /// Reads the key at `path`, or makes one there.
    ///
    /// # Errors
    /// The file cannot be used, or is not an identity; each says what to do.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(failed(error)),
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = file.metadata().map_err(failed)?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(IdentityError::Exposed {
                    path: path.to_owned(),
                });
            }
        }
        let mut text = String::new();
        (&mut file)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let secret: Digest = text.trim().parse().map_err(|_| IdentityError::Content {
            path: path.to_owned(),
        })?;
        // Where locks do not exist (some network folders) every process counts as a second one.
        let exclusive = file.try_lock().is_ok();
        let mut session = [0; 8];
        getrandom::fill(&mut session)?;
        Ok(Self {
            key: SigningKey::from_bytes(&secret.0),
            session: u64::from_le_bytes(session),
            exclusive,
            _file: file,
        })
    }

    /// The public key.
    pub fn public(&self) -> Digest {
        Digest(self.key.verifying_key().to_bytes())
    }

    /// A signature over `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// The key itself, for whoever signs links' greetings.
    pub fn signing_key(&self) -> SigningKey {
        self.key.clone()
    }
}

/// Makes the file with a fresh key, whole or not at all.
fn create(path: &Path) -> Result<File, IdentityError> {
    let failed = |source| IdentityError::File {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut drawn = [0; 40];
    getrandom::fill(&mut drawn)?;
    let (secret, tag) = drawn.split_at(32);
    let secret = Digest(secret.try_into().expect("32 of 40 bytes"));
    let draft = path.with_extension(format!("{}.new", hex::encode(tag)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(&draft)
        .and_then(|mut file| writeln!(file, "{secret}").and_then(|()| file.sync_all()));
    // A hard link fails if another process was faster: then its key is the one we use.
    let placed = written.and_then(|()| std::fs::hard_link(&draft, path));
    // The draft is of no use any more, whatever happened.
    let _ = std::fs::remove_file(&draft);
    match placed {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    File::open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, Verifier};

    use super::*;

    #[test]
    fn a_second_process_shares_the_key_but_not_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/identity");
        let first = Identity::open(&path).unwrap();
        let second = Identity::open(&path).unwrap();
        assert_eq!(first.public(), second.public());
        assert_ne!(first.session, second.session);
        assert!(first.exclusive && !second.exclusive);
        drop(first);
        assert!(Identity::open(&path).unwrap().exclusive);
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "a draft was left behind");
    }

    #[test]
    fn what_is_signed_verifies_under_the_public_key() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open(&folder.path().join("key")).unwrap();
        let public = ed25519_dalek::VerifyingKey::from_bytes(&identity.public().0).unwrap();
        let signature = Signature::from_bytes(&identity.sign(b"nonce"));
        assert!(public.verify(b"nonce", &signature).is_ok());
        assert!(public.verify(b"other", &signature).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        drop(Identity::open(&path).unwrap());
        let mode = |bits| std::fs::Permissions::from_mode(bits);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::fs::set_permissions(&path, mode(0o644)).unwrap();
        assert!(matches!(
            Identity::open(&path),
            Err(IdentityError::Exposed { .. })
        ));
        std::fs::write(&path, "not a key").unwrap();
        std::fs::set_permissions(&path, mode(0o600)).unwrap();
        assert!(matches!(
            Identity::open(&path),
            Err(IdentityError::Content { .. })
        ));
    }
}
