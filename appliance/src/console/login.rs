//! Who may in: the console's password, and patience with whoever guesses.
//!
//! The settings hold `$pbkdf2-sha512$i=N$SALT$HASH` (base64 without padding), which
//! `config password` makes, or, as a person writes it on a configuration drive, the password
//! itself. After a wrong try the next is heard only when its time has come, also in a new session.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::thread;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::pbkdf2;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use machine::Class;
use nix::time::{ClockId, clock_gettime};
use pghoard::{Failure, Outcome, durable};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::line::{Terminal, complain, say};
use super::place::Places;

/// OWASP's for this hash.
const ITERATIONS: u32 = 210_000;
/// A hash that somebody else made may cost no more than ten of ours.
const ITERATIONS_MAX: u32 = 10 * ITERATIONS;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const SCHEME: &str = "$pbkdf2-sha512$";
const ALGORITHM: pbkdf2::Algorithm = pbkdf2::PBKDF2_HMAC_SHA512;
/// Then the line goes back to its status page.
const TRIES_MAX: u32 = 3;
const PASSWORD_MIN: usize = 8;
const PAUSE_SECONDS_MAX: u64 = 60;

/// What the settings keep instead of the password.
pub fn hashed(password: &str) -> Outcome<String> {
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt)
        .map_err(|_| Failure::new(Class::Internal, "there is no randomness for a salt"))?;
    let hash = derive(ITERATIONS, &salt, password);
    let text = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
    Ok(format!(
        "{SCHEME}i={ITERATIONS}${}${}",
        text(&salt),
        text(&hash)
    ))
}

/// Why a new password is none.
pub fn acceptable(password: &str) -> Result<(), String> {
    match password.chars().count() {
        PASSWORD_MIN.. if !password.starts_with(SCHEME) => Ok(()),
        PASSWORD_MIN.. => Err(format!("a password may not begin with {SCHEME}")),
        _ => Err(format!("a password has at least {PASSWORD_MIN} characters")),
    }
}

fn derive(iterations: u32, salt: &[u8], password: &str) -> [u8; HASH_BYTES] {
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let mut hash = [0; HASH_BYTES];
    pbkdf2::derive(ALGORITHM, iterations, salt, password.as_bytes(), &mut hash);
    hash
}

/// In a time that tells nothing of where they differ. A broken hash lets nobody in.
pub fn fits(password: &str, kept: &str) -> bool {
    let Some(rest) = kept.strip_prefix(SCHEME) else {
        return verify_slices_are_equal(password.as_bytes(), kept.as_bytes()).is_ok();
    };
    let Some((iterations, salt, hash)) = parts(rest) else {
        return false;
    };
    pbkdf2::verify(ALGORITHM, iterations, &salt, password.as_bytes(), &hash).is_ok()
}

fn parts(rest: &str) -> Option<(NonZeroU32, Vec<u8>, Vec<u8>)> {
    let mut parts = rest.split('$');
    let iterations = parts
        .next()?
        .strip_prefix("i=")?
        .parse::<NonZeroU32>()
        .ok()?;
    let mut bytes = || STANDARD_NO_PAD.decode(parts.next()?).ok();
    let (salt, hash) = (bytes()?, bytes()?);
    let sane = iterations.get() <= ITERATIONS_MAX && hash.len() == HASH_BYTES;
    (sane && parts.next().is_none()).then_some((iterations, salt, hash))
}

/// The one of the settings, unless it is empty.
pub fn password(settings: &Value) -> Option<&str> {
    let kept = settings.pointer("/appliance/console_password");
    kept.and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Wrong tries at this line since the last right one; seconds of the clock that never jumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tries {
    wrong: u32,
    at_seconds: u64,
}

impl Tries {
    fn read(path: &Path) -> Tries {
        let bytes = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// One more, told to whoever comes next before this one hears of it.
    fn wrong(self, path: &Path, at_seconds: u64) -> Outcome<Tries> {
        let tries = Tries {
            wrong: self.wrong.saturating_add(1),
            at_seconds,
        };
        let text = serde_json::to_vec(&tries).unwrap_or_default();
        durable::write_own(path, &text)?;
        Ok(tries)
    }

    /// 1, 2, 4 ... seconds after so many wrong ones.
    fn pause(self) -> u64 {
        match self.wrong.checked_sub(1) {
            None => 0,
            Some(doublings) => 1_u64
                .checked_shl(doublings)
                .unwrap_or(PAUSE_SECONDS_MAX)
                .min(PAUSE_SECONDS_MAX),
        }
    }

    /// How long the next try is not heard yet. A boot begins the clock anew.
    fn wait(self, now_seconds: u64) -> u64 {
        let passed = now_seconds.checked_sub(self.at_seconds);
        passed.map_or(0, |passed| self.pause().saturating_sub(passed))
    }
}

fn seconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| u64::try_from(now.tv_sec()).unwrap_or_default())
}

/// Whether the person may in.
pub fn let_in(terminal: &mut Terminal, places: &Places, settings: Option<&Value>) -> bool {
    let Some(kept) = settings.and_then(password) else {
        say("warning: this console has no password; 'config password' sets one\n");
        return true;
    };
    let path = places.tries();
    for _ in 0..TRIES_MAX {
        let mut tries = Tries::read(&path);
        // Until the clock says so, however often a sleep ends early.
        while let left @ 1.. = tries.wait(seconds()) {
            thread::sleep(Duration::from_secs(left));
        }
        terminal.forget();
        let Some(password) = terminal.secret("Password: ") else {
            return false;
        };
        if fits(&password, kept) {
            if tries.wrong > 0 {
                say(&format!("{} wrong tries before this one\n", tries.wrong));
                // At worst the next wrong one waits longer.
                let _stays = durable::remove(&path);
            }
            return true;
        }
        tries = match tries.wrong(&path, seconds()) {
            Ok(tries) => tries,
            Err(failure) => {
                // Without a memory nobody may guess.
                complain(&failure);
                return false;
            }
        };
        say(&format!(
            "wrong password; the next try is heard in {} s\n",
            tries.pause()
        ));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_fits_itself_alone() {
        let kept = hashed("open sesame").unwrap();
        assert!(kept.starts_with("$pbkdf2-sha512$i=210000$"), "{kept}");
        assert!(!kept.contains("sesame"));
        assert_ne!(kept, hashed("open sesame").unwrap(), "salted");
        let cut = &kept[..kept.len() - 1];
        let cheap = kept.replace("i=210000", "i=0");
        let dear = kept.replace("i=210000", "i=4000000000");
        for (password, kept, expect) in [
            ("open sesame", kept.as_str(), true),
            ("open sesam", &kept, false),
            ("", &kept, false),
            (&kept, &kept, false),
            ("open sesame", cut, false),
            ("open sesame", &cheap, false),
            ("open sesame", &dear, false),
            ("open sesame", "$pbkdf2-sha512$", false),
            ("$pbkdf2-sha512$", "$pbkdf2-sha512$", false),
            ("plain", "plain", true),
            ("plai", "plain", false),
        ] {
            assert_eq!(fits(password, kept), expect, "{password} {kept}");
        }
    }

    #[test]
    fn each_wrong_try_waits_longer_than_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tries.json");
        let mut tries = Tries::read(&path);
        assert_eq!(tries.wait(5), 0);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            tries = tries.wrong(&path, 1_000).unwrap();
            assert_eq!(Tries::read(&path), tries, "another session knows");
            for (now, wait) in [(1_000, pause), (1_000 + pause - 1, 1), (1_000 + pause, 0)] {
                assert_eq!(tries.wait(now), wait, "{tries:?} at {now}");
            }
            assert_eq!(tries.wait(3), 0, "booted since");
        }
        let many = Tries {
            wrong: u32::MAX,
            at_seconds: 0,
        };
        assert_eq!(many.pause(), 60);
    }

    #[test]
    fn an_empty_password_is_none() {
        for (settings, expect) in [
            (r#"{"appliance": {"console_password": "x"}}"#, Some("x")),
            (r#"{"appliance": {"console_password": ""}}"#, None),
            (r#"{"appliance": {}}"#, None),
            ("{}", None),
        ] {
            let settings = serde_json::from_str(settings).unwrap();
            assert_eq!(password(&settings), expect, "{settings}");
        }
    }
}
