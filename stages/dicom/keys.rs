//! The secret behind pseudonyms: named in the configuration, held in the environment or in a file that nobody else can read. Never shown, never logged.

use std::io::Write;
use std::path::Path;

use super::names::Names;
use crate::error::Error;

/// A file of more bytes is no key.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Pseudonyms by the key that is named. Without one they are the same for everyone.
/// - `key_env`: name of an environment variable
/// - `key_file`: a file with mode 0600; the same text in either is the same key
pub fn names(key_env: Option<&str>, key_file: Option<&str>) -> Result<Names, Error> {
    match (key_env, key_file) {
        (Some(variable), None) => from_environment(variable),
        (None, Some(file)) => from_file(Path::new(file)),
        (None, None) => Ok(Names::keyed(b"")),
        (Some(_), Some(_)) => Err(Error::Input {
            what: "the key of the pseudonyms".into(),
            found: "both key_env and key_file".into(),
            expected: "one of them".into(),
        }),
    }
}

fn from_environment(variable: &str) -> Result<Names, Error> {
    let wrong = |found: String, expected: &str| Error::Input { what: format!("`key_env: {variable}`"), found, expected: expected.into() };
    let key = std::env::var(variable).ok().filter(|k| !k.is_empty());
    let key = key.ok_or_else(|| {
        let made = format!(
            "the secret key of the pseudonyms in it (`export {variable}=$(openssl rand -hex 32)` makes one: keep it; or take a file: \
             `--key-file FILE --new-key`)"
        );
        wrong("no such environment variable".into(), &made)
    })?;
    strong(key.trim_end_matches(['\r', '\n']).as_bytes()).map_err(|why| wrong(why, STRONG))
}

/// What a key has to be: a guessed key gives every pseudonym away.
const STRONG: &str =
    "at least 16 random bytes or 32 hex digits (`--key-file FILE --new-key` makes a key, and so does `openssl rand -hex 32`)";
const LEAST_BYTES: usize = 16;

/// Pseudonyms by a key that is not soon guessed, or what is wrong with it; never the key itself.
fn strong(key: &[u8]) -> Result<Names, String> {
    let is_hex = key.iter().all(u8::is_ascii_hexdigit);
    let n_bytes = if is_hex { key.len() / 2 } else { key.len() };
    if n_bytes < LEAST_BYTES {
        return Err(if is_hex { format!("{} hex digits", key.len()) } else { format!("{} bytes", key.len()) });
    }
    if key.iter().all(|b| *b == key[0]) {
        return Err("one character over and over".into());
    }
    Ok(Names::keyed(key))
}

fn from_file(file: &Path) -> Result<Names, Error> {
    let wrong = |found: String, expected: &str| Error::Input {
        what: format!("key file {}", file.display()),
        found,
        expected: expected.to_string(),
    };
    let meta = std::fs::metadata(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => wrong(
            "no such file".into(),
            "the file with the secret key of the pseudonyms (the first time, `--key-file FILE --new-key` of `voxmill convert` and `voxmill deidentify` \
             makes it; later runs take the same one, and other keys give other pseudonyms)",
        ),
        _ => Error::io("read key file", file)(e),
    })?;
    if !meta.is_file() || meta.len() > MAX_KEY_BYTES {
        return Err(wrong("no file of at most 64 KiB".into(), "a text that only you know"));
    }
    if let Some(mode) = open_to_others(&meta) {
        return Err(wrong(format!("mode {mode:04o}: others can read it"), "mode 0600 (chmod 600)"));
    }
    let bytes = std::fs::read(file).map_err(Error::io("read key file", file))?;
    let end = bytes.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |i| i + 1);
    if end == 0 {
        return Err(wrong("an empty file".into(), STRONG));
    }
    strong(&bytes[..end]).map_err(|why| wrong(why, STRONG))
}

#[cfg(unix)]
fn open_to_others(meta: &std::fs::Metadata) -> Option<u32> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

#[cfg(not(unix))]
fn open_to_others(_meta: &std::fs::Metadata) -> Option<u32> {
    None
}

/// Makes a key file with 256 random bits and mode 0600; one that is there already is left alone and refused.
pub fn create(file: &Path) -> Result<(), Error> {
    let secret = random().map_err(Error::io("draw a key for", file))?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Input {
            what: format!("key file {}", file.display()),
            found: "a file that is there already".into(),
            expected: "no file: a new key would give other pseudonyms (leave --new-key out to use this one)".into(),
        },
        _ => Error::io("write", file)(e),
    })?;
    let text = blake3::Hash::from_bytes(secret).to_hex();
    out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.sync_all()).map_err(Error::io("write", file))
}

#[cfg(unix)]
fn random() -> std::io::Result<[u8; 32]> {
    use std::io::Read;
    let mut out = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut out)?;
    Ok(out)
}

/// The standard library draws the keys of its hash maps from the system: 128 bits of them, spread over the key.
#[cfg(not(unix))]
fn random() -> std::io::Result<[u8; 32]> {
    use std::hash::{BuildHasher, RandomState};
    let state = RandomState::new();
    let drawn: Vec<u8> = (0u64..8).flat_map(|i| state.hash_one(i).to_le_bytes()).collect();
    Ok(*blake3::hash(&drawn).as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_secret_and_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.key"), dir.path().join("b.key"));
        create(&a).unwrap();
        create(&b).unwrap();
        assert!(create(&a).is_err());
        let of = |f: &Path| names(None, f.to_str()).unwrap().of("patient", "1");
        assert_eq!(of(&a), of(&a));
        assert_ne!(of(&a), of(&b));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        create(&key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let e = names(None, key.to_str()).err().unwrap().to_string();
        assert!(e.contains("0640") && e.contains("0600"), "{e}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        for weak in ["\n", "secret", "0123456789abcdef", "0123456789abcdef0123456789abcde", &"a".repeat(64), &"x".repeat(40)] {
            std::fs::write(&key, weak).unwrap();
            let e = names(None, key.to_str()).err().unwrap_or_else(|| panic!("{weak}")).to_string();
            assert!(e.contains("--new-key") && !e.contains("cdef") && !e.contains("secret"), "{e}");
        }
        for good in ["0123456789abcdef0123456789abcdef\n", "correct horse battery"] {
            std::fs::write(&key, good).unwrap();
            assert!(names(None, key.to_str()).is_ok(), "{good}");
        }
        assert!(names(Some("A"), Some("b")).is_err());
    }
}
