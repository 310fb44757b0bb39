//! The two kinds of patterns: `--exclude` and `--transform`.

use std::str::FromStr;

use regex_lite::{Captures, Regex, escape};

/// A shell pattern as Python's fnmatch reads it: `*`, `?`, `[abc]`, `[!abc]`, the whole text.
#[derive(Clone, Debug)]
pub struct Glob(Regex);

impl Glob {
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Glob, String> {
        let mut out = String::from(r"(?s)\A");
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '*' => out.push_str(".*"),
                '?' => out.push('.'),
                '[' => match set(rest.as_str()) {
                    Some((set, after)) => {
                        out.push_str(&set);
                        rest = after.chars();
                    }
                    None => out.push_str(r"\["),
                },
                c => out.push_str(&escape(&c.to_string())),
            }
        }
        out.push_str(r"\z");
        let compiled = Regex::new(&out);
        compiled.map(Glob).map_err(|e| format!("'{text}': {e}"))
    }
}

/// The set that begins after a `[`, as a regular expression, and what follows it; `None` where it
/// never ends, which makes the bracket an ordinary character. A `]` at its front belongs to it.
fn set(text: &str) -> Option<(String, &str)> {
    let (not, body) = match text.strip_prefix('!') {
        Some(body) => ("^", body),
        None => ("", text),
    };
    let from = body.chars().next()?.len_utf8();
    let (_, later) = body.split_at_checked(from)?;
    let end = later.find(']')?.checked_add(from)?;
    let (content, after) = body.split_at_checked(end)?;
    let mut out = format!("[{not}");
    for c in content.chars() {
        if !c.is_alphanumeric() && c != '-' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push(']');
    Some((out, after.strip_prefix(']')?))
}

/// `s,search,replace,`: every match of `search`, escaped as in GNU's basic regular expressions.
#[derive(Clone, Debug)]
pub struct Transform {
    pub search: String,
    regex: Regex,
    replace: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Transform {
    pub fn apply(&self, name: &str) -> String {
        let replaced = self.regex.replace_all(name, |found: &Captures<'_>| {
            let text = self.replace.iter().map(|piece| match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Group(number) => found.get(*number).map_or("", |group| group.as_str()),
            });
            text.collect::<String>()
        });
        replaced.into_owned()
    }
}

impl FromStr for Transform {
    type Err = String;

    fn from_str(text: &str) -> Result<Transform, String> {
        let wrong = |what: &str| format!("'{text}': expected s,search,replace, ({what})");
        let mut chars = text.chars();
        if chars.next() != Some('s') {
            return Err(wrong("it does not begin with s"));
        }
        let separator = chars.next().ok_or_else(|| wrong("no separator"))?;
        if separator == '\\' || separator.is_alphanumeric() {
            return Err(wrong("such a separator would be ambiguous"));
        }
        let (search, rest) = until(chars.as_str(), separator).ok_or_else(|| wrong("no search"))?;
        let (replace, rest) = until(rest, separator).ok_or_else(|| wrong("it has no end"))?;
        if !rest.is_empty() {
            return Err(wrong("flags are not known"));
        }
        let regex = Regex::new(&basic(search, separator)).map_err(|e| wrong(&e.to_string()))?;
        let replace = pieces(replace, separator).map_err(|what| wrong(&what))?;
        for piece in &replace {
            if let Piece::Group(number) = piece
                && *number >= regex.captures_len()
            {
                return Err(wrong(&format!("there is no group {number}")));
            }
        }
        Ok(Transform {
            search: search.to_owned(),
            regex,
            replace,
        })
    }
}

/// The text up to the separator that no backslash is before, and what follows it.
fn until(text: &str, separator: char) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && c == separator {
            let (before, after) = text.split_at_checked(at)?;
            return Some((before, after.strip_prefix(separator)?));
        }
        escaped = !escaped && c == '\\';
    }
    None
}

/// As our library writes it: what is special with a backslash in GNU's basic expressions is special
/// without one here.
fn basic(search: &str, separator: char) -> String {
    let swapped = |c: char| "{}()+?|".contains(c);
    let mut out = String::new();
    let mut chars = search.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next) if next == separator => out.push_str(&escape(&next.to_string())),
                Some(next) if swapped(next) => out.push(next),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            c if swapped(c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

fn pieces(replace: &str, separator: char) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = replace.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some(next) if next == separator || next == '\\' => text.push(next),
            Some(digit) if digit.is_ascii_digit() => {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
                let group = digit
                    .to_digit(10)
                    .and_then(|digit| usize::try_from(digit).ok());
                pieces.push(Piece::Group(group.unwrap_or(0)));
            }
            Some(next) => return Err(format!("'\\{next}' means nothing in a replacement")),
            None => return Err("a backslash at the end".to_owned()),
        }
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_those_of_fnmatch() {
        for (pattern, yes, no) in [
            (
                "a.txt",
                &["a.txt"][..],
                &["abtxt", "a.txtx", "xa.txt", ""][..],
            ),
            ("*.txt", &[".txt", "a.b.txt"], &["a.txt~"]),
            ("a?c", &["abc", "a.c"], &["ac", "abbc"]),
            ("[ab]c", &["ac", "bc"], &["cc", "abc"]),
            ("[!ab]c", &["cc", "!c"], &["ac"]),
            ("[a-c]", &["b"], &["d", "-"]),
            ("[]]", &["]"], &["["]),
            ("[^a]", &["^", "a"], &["b"]),
            ("[a", &["[a"], &["a"]),
            ("[]", &["[]"], &["]"]),
            ("a+(b)|$", &["a+(b)|$"], &["aab"]),
            ("", &[], &["a"]),
        ] {
            let glob: Glob = pattern.parse().unwrap();
            for text in yes {
                assert!(glob.matches(text), "{pattern} {text}");
            }
            for text in no {
                assert!(!glob.matches(text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn transforms_escape_as_gnu_does() {
        for (transform, name, expect) in [
            ("s,^pgdata/,,", "pgdata/base/1", "base/1"),
            ("s,^pgdata/,,", "x/pgdata/1", "x/pgdata/1"),
            ("s,a,b,", "banana", "bbnbnb"),
            (
                r"s,^tablespaces/ts/\(.*\)$,/space/\1,",
                "tablespaces/ts/P/1",
                "/space/P/1",
            ),
            ("s,(a),b,", "(a)a", "ba"),
            (r"s,a\+,b,", "aaa+", "b+"),
            ("s,a+,b,", "aaa+", "aab"),
            (r"s,a\{2\},b,", "aaa", "ba"),
            (r"s,x\|y,b,", "x|y", "b|b"),
            (r"s|a\|b|c|", "xa|b", "xc"),
            (r"s,a\,b,c\,d,", "a,b", "c,d"),
            (r"s%a%b%", "a", "b"),
            (r"s,\.,\\,", "a.b", r"a\b"),
            ("s,.*,,", "gone", ""),
            (r"s,\(a\)\(b\)\?,\2\1,", "ac", "ac"),
            ("s,a,&,", "a", "&"),
        ] {
            let parsed: Transform = transform.parse().unwrap();
            assert_eq!(parsed.apply(name), expect, "{transform}");
        }
        for bad in [
            "",
            "s",
            "x,a,b,",
            "s,a",
            "s,a,b",
            "s,a,b,g",
            r"s,\(a,b,",
            r"s,a,\1,",
            r"s,a,\n,",
            r"s,a,b\",
            r"s\a\b\",
            "sabac",
        ] {
            assert!(bad.parse::<Transform>().is_err(), "{bad}");
        }
    }
}
