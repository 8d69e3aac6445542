//! Who speaks: what volunteers sign for the host and for each other.
//!
//! A signature is over words that nothing else signs, so that none can be used for another purpose. Where keys are kept
//! is the clients' business.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::units::{Digest, PeerId};

/// The bytes that [`Join::proof`](super::Join::proof) signs.
pub fn join_message(nonce: &Digest, session: u64) -> Vec<u8> {
    let mut message = b"shoal join ".to_vec();
    message.extend_from_slice(&nonce.0);
    message.extend_from_slice(&session.to_le_bytes());
    message
}

/// The bytes that a link's `hello` signs: who speaks to whom, over which certificates.
///
/// `from_*` is the signing end. Fingerprints are compared as SDP writes them, in upper case.
pub fn hello_message(
    from: PeerId,
    from_fingerprint: &str,
    to: PeerId,
    to_fingerprint: &str,
) -> Vec<u8> {
    let text = format!(
        "shoal hello {from} {} {to} {}",
        from_fingerprint.to_ascii_uppercase(),
        to_fingerprint.to_ascii_uppercase()
    );
    text.into_bytes()
}

/// Whether `signature` is `key`'s Ed25519 signature over `message`.
pub fn verifies(key: &Digest, message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&key.0) else {
        return false;
    };
    let Ok(signature) = Signature::from_slice(signature) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}
