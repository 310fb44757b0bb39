//! Versions: numbers with dots, and perhaps what comes before the real one: `1.2.0`, `1.2.0~rc1`.
//!
//! Their order is the boot loader's (UAPI group's Version Format Specification), of which this form
//! is a part that needs no explaining: number by number, more numbers are newer, and what follows
//! the tilde is older than the same without.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Refused, refused};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    numbers: Vec<u32>,
    stage: Stage,
}

/// In their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    /// A word and perhaps its number.
    Before(String, Option<u32>),
    Released,
}

/// It is part of a file's name.
const LENGTH_MAX: usize = 32;

impl FromStr for Version {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Version, Refused> {
        parse(text).ok_or_else(|| {
            refused(format!(
                "version '{}': expected numbers with dots and perhaps a word, as in 1.2.0 or \
                 1.2.0~rc1",
                text.escape_default()
            ))
        })
    }
}

fn parse(text: &str) -> Option<Version> {
    let (numbers, stage) = match text.split_once('~') {
        None => (text, Stage::Released),
        Some((numbers, stage)) => {
            let word = stage.trim_end_matches(|c: char| c.is_ascii_digit());
            let lower = !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase());
            let rest = stage.strip_prefix(word).filter(|_| lower)?;
            let count = match rest {
                "" => None,
                digits => Some(number(digits)?),
            };
            (numbers, Stage::Before(word.to_owned(), count))
        }
    };
    let numbers: Option<Vec<u32>> = numbers.split('.').map(number).collect();
    (text.len() <= LENGTH_MAX).then_some(Version {
        numbers: numbers?,
        stage,
    })
}

/// One spelling a number: no sign, no zeros in front.
fn number(digits: &str) -> Option<u32> {
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

impl TryFrom<String> for Version {
    type Error = Refused;

    fn try_from(text: String) -> Result<Version, Refused> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.numbers.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))?;
        match &self.stage {
            Stage::Released => Ok(()),
            Stage::Before(word, None) => write!(f, "~{word}"),
            Stage::Before(word, Some(count)) => write!(f, "~{word}{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each one is older than the next, as `systemd-analyze compare-versions` has it.
    #[test]
    fn versions_are_ordered_as_the_boot_loader_does() {
        let ordered = [
            "0.1.0",
            "0.9",
            "0.9.1",
            "0.10~beta",
            "0.10~rc",
            "0.10~rc1",
            "0.10~rc2",
            "0.10~rc10",
            "0.10~rcx",
            "0.10",
            "0.10.0",
            "0.10.1~a",
            "0.10.1",
            "1",
            "2",
            "10",
            "10.0.0.1",
        ];
        for (at, one) in ordered.iter().enumerate() {
            for (other_at, other) in ordered.iter().enumerate() {
                let of = |text: &str| -> Version { text.parse().unwrap() };
                assert_eq!(of(one).cmp(&of(other)), at.cmp(&other_at), "{one} {other}");
                assert_eq!(of(one).to_string(), *one);
            }
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            "v1",
            "1.2-3",
            "1+3",
            "01",
            "1.02",
            "1~",
            "1~1",
            "1~RC1",
            "1~rc01",
            "1~rc1.2",
            "1~a~b",
            "1/2",
            "+1",
            "1.2.3.4.5.6.7.8.9.10.11.12.13.141",
            "99999999999",
        ] {
            let told = text.parse::<Version>().unwrap_err().to_string();
            assert!(
                told.starts_with(&format!("version '{text}': expected")),
                "{told}"
            );
        }
    }
}
