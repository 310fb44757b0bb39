//! What a check found, and how it is shown.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::tool::screen::wrap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// Worth a look; all works without.
    Warn,
    /// Something must be done.
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warning",
            Verdict::Fail => "failed",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, one word, for people and programs.
    pub point: &'static str,
    pub verdict: Verdict,
    pub text: String,
    /// What to do.
    pub cure: Option<String>,
}

impl Finding {
    pub fn ok(point: &'static str, text: impl Into<String>) -> Finding {
        Finding {
            point,
            verdict: Verdict::Ok,
            text: text.into(),
            cure: None,
        }
    }

    pub fn warn(point: &'static str, text: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding {
            point,
            verdict: Verdict::Warn,
            text: text.into(),
            cure: Some(cure.into()),
        }
    }

    pub fn fail(point: &'static str, text: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Fail,
            ..Finding::warn(point, text, cure)
        }
    }

    /// A failure whose hint, if it has one, says what to do better than `cure`.
    pub fn failed(point: &'static str, failure: &Failure, cure: &str) -> Finding {
        let cure = failure.hint.as_deref().unwrap_or(cure);
        Finding::fail(point, failure.message.as_str(), cure)
    }
}

/// What a group of findings is about: everything, a site, or one of its servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub site: Option<String>,
    pub node: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub about: About,
    pub title: String,
    pub findings: Vec<Finding>,
}

impl Group {
    pub fn render(&self) -> String {
        let mut out = format!("{}\n", clean(&self.title));
        for finding in &self.findings {
            let head = format!("  {:<4}  {:<16} ", finding.verdict.mark(), finding.point);
            out += &wrap(&head, &clean(&finding.text));
            if let Some(cure) = &finding.cure {
                out += &wrap("        to do: ", &clean(cure));
            }
        }
        out
    }
}

/// What a server or a store said must not move the cursor.
fn clean(text: &str) -> String {
    let plain = text.chars();
    plain
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

pub fn count(groups: &[Group], verdict: Verdict) -> usize {
    let findings = groups.iter().flat_map(|group| &group.findings);
    findings
        .filter(|finding| finding.verdict == verdict)
        .count()
}

pub fn summary(groups: &[Group]) -> String {
    let count = |verdict| count(groups, verdict);
    let warned = match count(Verdict::Warn) {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        many => format!(", {many} warnings"),
    };
    match count(Verdict::Fail) {
        0 => format!("All is well: {} points{warned}", count(Verdict::Ok)),
        many => format!(
            "{} points are ok{warned}, {many} FAILED",
            count(Verdict::Ok)
        ),
    }
}

pub fn json(groups: &[Group]) -> Value {
    let points = groups.iter().flat_map(|group| {
        group.findings.iter().map(|finding| {
            json!({
                "site": group.about.site,
                "node": group.about.node,
                "point": finding.point,
                "outcome": finding.verdict.name(),
                "text": finding.text,
                "cure": finding.cure,
            })
        })
    });
    let points: Vec<Value> = points.collect();
    json!({ "well": count(groups, Verdict::Fail) == 0, "points": points })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<Group> {
        vec![Group {
            about: About {
                site: Some("main".into()),
                node: Some(0),
            },
            title: "site main, server 0 at db:5432".into(),
            findings: vec![
                Finding::ok("reachable", "in 3 ms"),
                Finding::warn("grants", "no\u{7}t all", "grant them"),
                Finding::fail(
                    "wal_level",
                    "it is minimal ".repeat(8),
                    "set wal_level = replica",
                ),
            ],
        }]
    }

    #[test]
    fn a_line_a_point_and_what_to_do() {
        let text = groups()[0].render();
        assert_eq!(
            text,
            "\
site main, server 0 at db:5432
  ok    reachable        in 3 ms
  warn  grants           no t all
        to do: grant them
  FAIL  wal_level        it is minimal it is minimal it is minimal it is minimal
                         it is minimal it is minimal it is minimal it is minimal
        to do: set wal_level = replica
"
        );
        assert!(text.lines().all(|line| line.len() <= 80));
        assert_eq!(summary(&groups()), "1 points are ok, 1 warning, 1 FAILED");
    }

    #[test]
    fn programs_get_the_same() {
        let json = json(&groups());
        assert_eq!(json["well"], false);
        assert_eq!(json["points"][2]["outcome"], "failed");
        assert_eq!(json["points"][2]["cure"], "set wal_level = replica");
        assert_eq!(json["points"][0]["cure"], Value::Null);
        assert_eq!(json["points"][0]["node"], 0);
    }
}
