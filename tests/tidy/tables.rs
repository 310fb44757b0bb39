//! README's tables against the code: what an operator is told is what there is.

use machine::rule::alerts::{OURS, STICKY};
use pghoard::config::keys;
use pghoard::journal::upcast::KINDS;
use pghoard::publish::metrics;
use pghoard::serve::routes::table::ROUTES;

use crate::{read, texts};

/// The cells of every table row below a heading, up to the next heading of its rank or higher.
fn rows(heading: &str) -> Vec<Vec<String>> {
    rows_of("README.md", heading)
}

pub fn rows_of(file: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(file).content;
    let part = text
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("{file}: no heading '{heading}'"))
        .1;
    let rank = heading.bytes().take_while(|b| *b == b'#').count();
    let ends = |line: &&str| {
        let marks = line.bytes().take_while(|b| *b == b'#').count();
        marks > 0 && marks <= rank
    };
    let lines = part.lines().take_while(|line| !ends(line));
    let cells = |line: &str| {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(
            inner
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect(),
        )
    };
    lines.filter_map(cells).collect()
}

/// The words in backticks that begin a row.
fn names(heading: &str) -> Vec<String> {
    let name = |row: &Vec<String>| {
        let inner = row[0].strip_prefix('`')?.strip_suffix('`')?;
        Some(inner.to_owned())
    };
    let mut names: Vec<String> = rows(heading).iter().filter_map(name).collect();
    names.sort();
    names
}

fn check(heading: &str, mut code: Vec<String>) {
    code.sort();
    assert_eq!(
        names(heading),
        code,
        "README.md, '{heading}' (left) against the code (right)"
    );
}

#[test]
fn every_alert_is_told() {
    let all = STICKY.iter().chain(&OURS).map(ToString::to_string);
    check("### Alerts", all.collect());
}

/// Each route's method and path begin a row; GET of a file has two, for its two forms.
#[test]
fn every_route_is_told() {
    let mut code: Vec<String> = ROUTES
        .iter()
        .map(|route| {
            let path = route.path.replace("{site}", "SITE");
            let path = path.replace("{name}", "NAME").replace("{file}", "FILE");
            format!("{} {path}", route.method)
        })
        .collect();
    code.sort();
    let told = |row: &Vec<String>| Some(row[0].strip_prefix('`')?.split('`').next()?.to_owned());
    let mut told: Vec<String> = rows("### HTTP").iter().filter_map(told).collect();
    told.sort();
    told.dedup();
    assert_eq!(
        told, code,
        "README.md (left) against src/serve/routes/table.rs (right)"
    );
}

#[test]
fn every_event_is_told() {
    check(
        "### Events",
        KINDS.iter().map(ToString::to_string).collect(),
    );
}

/// Name, kind, tags and meaning, in the order of the table.
#[test]
fn every_metric_is_told() {
    let code = metrics::all().map(|metric| {
        let tags: Vec<String> = metric.tags.iter().map(|tag| format!("`{tag}`")).collect();
        let name = format!("`{}`", metric.name);
        let (kind, help) = (metric.kind.name().to_owned(), metric.help.to_owned());
        vec![name, kind, tags.join(", "), help]
    });
    let code: Vec<Vec<String>> = code.collect();
    let mut told = rows("### Metrics");
    // Not the examples of alarms.
    told.retain(|row| row[0].starts_with("`pghoard."));
    assert_eq!(
        told, code,
        "README.md (left) against src/publish/metrics (right)"
    );
}

/// The whole section is made from the table the parser goes by.
#[test]
fn every_configuration_key_is_told() {
    let mut wanted = String::new();
    let mut level = None;
    for key in keys::all() {
        if level != Some(key.level) {
            level = Some(key.level);
            let name = key.level.name();
            wanted += &format!("\n#### {name}\n\n| key | default | meaning |\n|---|---|---|\n");
        }
        let meaning = match key.used {
            keys::Use::Read => key.meaning.to_owned(),
            keys::Use::Later => format!("not yet: {}", key.meaning),
            keys::Use::Accepted => format!("accepted, without effect: {}", key.meaning),
        };
        wanted += &format!("| `{}` | {} | {meaning} |\n", key.name, key.default);
    }
    let told = read("README.md").content;
    assert!(
        told.contains(&wanted),
        "README.md: the configuration keys should read\n{wanted}"
    );
}

/// Each tool's module doc has its codes; README has the same rows with the command in front.
#[test]
fn every_exit_code_is_told() {
    let mut code = Vec::new();
    for text in texts()
        .iter()
        .filter(|text| text.path.starts_with("src/tool/"))
    {
        let doc = text.content.strip_prefix("//! `pghoard");
        let Some((name, _)) = doc.and_then(|doc| doc.split_once('`')) else {
            continue;
        };
        let before = code.len();
        for (_, line) in text.lines() {
            let cells = line
                .strip_prefix("//! | ")
                .and_then(|row| row.strip_suffix(" |"));
            let Some((number, when)) = cells.and_then(|cells| cells.split_once(" | ")) else {
                continue;
            };
            if number.parse::<u8>().is_ok() {
                code.push(
                    [&format!("`pghoard{name}`"), number, when]
                        .map(str::to_owned)
                        .to_vec(),
                );
            }
        }
        assert!(
            code.len() > before,
            "{}:1: no table of exit codes",
            text.path
        );
    }
    let mut told: Vec<Vec<String>> = rows("### Exit codes");
    told.retain(|row| row[1].parse::<u8>().is_ok());
    told.sort();
    code.sort();
    assert_eq!(told, code, "README.md (left) against src/tool (right)");
}
