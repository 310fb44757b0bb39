//! The table against PGHoard's, what its rows read, and the forms they are sent in.

use machine::event::{Event, Origin, Range, Slot, Why};
use machine::rule::alerts::Entry;
use machine::task::TaskId;
use machine::{BackupName, Class, Envelope, File, Lsn, Segment, Timeline};

use super::exposition::Form;
use super::statsd::Sent;
use super::*;
use crate::config::StatsdFormat;
use crate::publish::testing::{live, policy, seen, site, state};

/// When `testing::state` began.
const START: u64 = 1_795_339_731_251;
const LATER: u64 = START + 32_750;
const NOW: u64 = START + 62_750;

/// PGHoard's table (its calls of `gauge` and `increase`).
#[rustfmt::skip]
const THEIRS: [(&str, &str, &[&str]); 17] = [
    ("pghoard.backup_stream.basebackup_requested", "gauge", &["site"]),
    ("pghoard.backup_time", "gauge", &["basebackup_mode"]),
    ("pghoard.basebackup_completed", "counter", &[]),
    ("pghoard.basebackup_failed", "counter", &[]),
    ("pghoard.basebackup_bytes_uploaded", "counter", &["delta"]),
    ("pghoard.basebackup_estimated_progress", "gauge", &["site"]),
    ("pghoard.compressed_size_ratio", "gauge", &["algorithm", "site", "type"]),
    ("pghoard.incomplete_partial_wal_segment", "counter", &[]),
    ("pghoard.last_upload_age", "gauge", &["site", "type"]),
    ("pghoard.seconds_since_backup_progress_stalled", "gauge", &[]),
    ("pghoard.total_upload_size", "gauge", &["site", "type"]),
    ("pghoard.transfer_operation_errors", "counter", &[]),
    ("pghoard.unrecoverable_quit_main_loop_failure", "counter", &[]),
    ("pghoard.upload_size", "counter", &["result", "site", "type"]),
    ("pghoard.download_size", "counter", &["result", "site", "type"]),
    ("pghoard.xlogs_since_basebackup", "gauge", &["site"]),
    ("pghoard.exception", "counter", &["exception", "where"]),
];

fn told(event: Event, state: &mut State) {
    let envelope = Envelope {
        seq: state.seq + 1,
        at: Millis(LATER),
        run: 1,
        site: Some(site("main")),
        event,
    };
    state.apply(&envelope);
}

/// Something in every row.
fn rich() -> State {
    let mut state = state("main");
    let segment = |number| Segment::new(Timeline(1), number);
    let first = BackupName("2026-11-22_09-29_0".into());
    let backup = BackupName("2026-11-23_00-00_0".into());
    let failed = Event::TaskFailed {
        task: TaskId::Store(site("main"), File::Wal(segment(7))),
        class: Class::Quota,
        message: "full".into(),
    };
    let Event::ServerSeen(mut server) = seen(0, 1) else {
        panic!()
    };
    server.slot = Some(Slot {
        name: "pghoard".into(),
        restart_lsn: Some(Lsn(0x700_0000)),
        held_bytes: Some(5_000),
        ..Slot::default()
    });
    for event in [
        failed.clone(),
        failed,
        Event::ServerSeen(server),
        Event::BackupFailed {
            backup: backup.clone(),
            class: Class::Timeout,
            message: "late".into(),
        },
        Event::BackupStarted {
            backup: backup.clone(),
            node: 0,
            decided_at: Millis(LATER),
            normalized_at: None,
            reason: Why::Schedule,
        },
        Event::BackupProgressed {
            backup,
            bytes: 25,
            total: 100,
        },
        Event::BackupRequested {
            reason: Why::Operator,
        },
        Event::Spooled {
            file: File::Partial(segment(9)),
            entry: 99,
            bytes: 7,
            origin: Origin::Stream,
        },
        Event::ScrubStarted { objects: 1 },
        // All there is.
        Event::Verified {
            wal: vec![Range {
                timeline: Timeline(1),
                first: 5,
                last: 6,
            }],
            files: vec![
                File::Main(first.clone()),
                File::Part {
                    backup: first,
                    number: 1,
                },
            ],
            bytes: 1_234,
            partly: 0,
        },
    ] {
        told(event, &mut state);
    }
    state.crashes = 3;
    state
}

fn sampled(state: &State) -> Vec<Sample> {
    let entry = Entry {
        since: Millis(1),
        what: "x".into(),
        todo: "y",
    };
    let alert = Alert {
        entries: vec![entry],
        acknowledged: true,
    };
    samples(&Facts {
        state,
        policy: &policy("main"),
        live: &live(),
        alerts: &[("wal_hole", alert)].into(),
        algorithm: "zstd",
        now: Millis(NOW),
    })
}

#[test]
fn pghoards_metrics_have_its_names_kinds_and_tags() {
    let rows = theirs::METRICS
        .iter()
        .map(|m| (m.name, m.kind.name(), m.tags));
    assert_eq!(rows.collect::<Vec<_>>(), THEIRS);
}

#[test]
fn every_row_is_told_and_with_the_tags_it_promises() {
    let state = rich();
    let samples = sampled(&state);
    for metric in all() {
        let of = |sample: &&Sample| sample.metric.name == metric.name;
        let mut found = samples.iter().filter(of).peekable();
        assert!(found.peek().is_some(), "{} is not told", metric.name);
        for sample in found {
            let tags: Vec<&str> = sample.tags.iter().map(|(name, _)| *name).collect();
            assert_eq!(tags, metric.tags, "{}", metric.name);
            let whole = matches!(sample.value, Value::Whole(_));
            assert!(whole || metric.kind == Kind::Gauge, "{}", metric.name);
        }
        let plain = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '.');
        assert!(metric.name.chars().all(plain), "{}", metric.name);
    }
}

#[test]
fn values_are_those_of_the_state() {
    let text = exposition::render(&sampled(&rich()), &config::Tags::new(), Form::Scrape);
    for line in [
        "backup_stream_basebackup_requested{site=\"main\"} 1",
        "backup_time{basebackup_mode=\"stream\"} 1.25",
        "basebackup_completed 1",
        "basebackup_failed 1",
        "basebackup_bytes_uploaded{delta=\"False\"} 4194304",
        "basebackup_estimated_progress{site=\"main\"} 25.0",
        "compressed_size_ratio{algorithm=\"zstd\",site=\"main\",type=\"xlog\"} 0.125",
        "incomplete_partial_wal_segment 1",
        "last_upload_age{site=\"main\",type=\"xlog\"} 60",
        "last_upload_age{site=\"main\",type=\"basebackup_chunk\"} 61",
        "seconds_since_backup_progress_stalled 30",
        "total_upload_size{site=\"main\",type=\"xlog\"} 4194304",
        "transfer_operation_errors 2",
        "unrecoverable_quit_main_loop_failure 3",
        "upload_size{result=\"ok\",site=\"main\",type=\"xlog\"} 4194304",
        "upload_size{result=\"failed\",site=\"main\",type=\"xlog\"} 33554432",
        "upload_size{result=\"failed\",site=\"main\",type=\"basebackup\"} 0",
        "download_size{result=\"ok\",site=\"main\",type=\"xlog\"} 1234",
        "xlogs_since_basebackup{site=\"main\"} 1",
        "exception{exception=\"quota\",where=\"handle_upload\"} 2",
        "exception{exception=\"network\",where=\"check_pg_server_version\"} 1",
        "exception{exception=\"timeout\",where=\"PGBaseBackup\"} 1",
        "recoverable_windows{site=\"main\"} 1",
        "recoverable_from_timestamp_seconds{site=\"main\"} 1795339733",
        "restorable_backups{site=\"main\"} 1",
        "unprotected_bytes{site=\"main\"} 16777728",
        "unprotected_seconds{site=\"main\"} 62",
        "open_holes{site=\"main\"} 0",
        "slot_held_bytes{node=\"0\",site=\"main\"} 5000",
        "slot_lag_bytes{node=\"0\",site=\"main\"} 16777728",
        "server_up{node=\"0\",site=\"main\"} 1",
        "server_up{node=\"1\",site=\"main\"} 0",
        "streaming{site=\"main\"} 1",
        "backup_running{site=\"main\"} 1",
        "spool_bytes{site=\"main\"} 16777223",
        "spool_limit_bytes{site=\"main\"} 1073741824",
        "disk_free_bytes{site=\"main\"} 32212254720",
        "verified_age_seconds{site=\"main\"} 30",
        "failing_tasks{site=\"main\"} 3",
        "alert_raised{alert=\"wal_hole\"} 1",
        "alert_acknowledged{alert=\"wal_hole\"} 1",
        "alert_raised{alert=\"wal_conflict\"} 0",
        "started_timestamp_seconds 1795339731",
        "events_total 23",
    ] {
        let line = format!("pghoard_{line}");
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
}

/// Nothing known is no reason to say nothing: what stands at 0 can be alarmed on.
#[test]
fn a_site_without_a_history_tells_what_it_can() {
    let samples = sampled(&State::default());
    let names: Vec<&str> = samples.iter().map(|sample| sample.metric.name).collect();
    for name in [
        "pghoard.basebackup_failed",
        "pghoard.restorable_backups",
        "pghoard.open_holes",
        "pghoard.streaming",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(!names.contains(&"pghoard.unprotected_seconds"));
    assert!(!names.contains(&"pghoard.last_backup_age_seconds"));
}

fn sample(name: &str, tags: &[(&'static str, &str)], value: Value) -> Sample {
    let metric = all().find(|metric| metric.name == name).unwrap();
    let tags = tags
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    Sample {
        metric,
        tags: tags.collect(),
        value,
    }
}

fn tags(tags: &[(&str, &str)]) -> config::Tags {
    let tags = tags.iter().map(|(name, value)| (*name, *value));
    tags.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const RATIO: &str = "pghoard.compressed_size_ratio";
const FAILED: &str = "pghoard.basebackup_failed";
const EVENTS: &str = "pghoard.events_total";

#[test]
fn labels_are_sorted_merged_and_escaped() {
    let one = |tags: &[(&'static str, &str)]| sample(RATIO, tags, Value::Real(0.5));
    for (own, more, expect) in [
        (vec![], vec![], ""),
        (
            vec![("site", "a")],
            vec![("app", "x")],
            "{app=\"x\",site=\"a\"}",
        ),
        (vec![("site", "a")], vec![("site", "x")], "{site=\"a\"}"),
        (
            vec![("site", "a\\b\"c\nd")],
            vec![],
            "{site=\"a\\\\b\\\"c\\nd\"}",
        ),
        (
            vec![],
            vec![("1 data-centre", "\u{f6}"), ("", "y")],
            "{_=\"y\",_1_data_centre=\"\u{f6}\"}",
        ),
    ] {
        let text = exposition::render(&[one(&own)], &tags(&more), Form::Push);
        let line = format!("pghoard_compressed_size_ratio{expect} 0.5");
        assert_eq!(text.lines().last(), Some(line.as_str()));
    }
}

/// A difference on purpose: PGHoard's counters hold the last increment, and its lines a time.
#[test]
fn counters_are_sums_with_the_types_that_their_readers_want() {
    let samples = [
        sample(RATIO, &[("site", "a")], Value::Real(2.0)),
        sample(RATIO, &[("site", "b")], Value::Real(0.25)),
        sample(FAILED, &[], Value::Whole(7)),
        sample(EVENTS, &[], Value::Whole(9)),
    ];
    let scrape = exposition::render(&samples, &config::Tags::new(), Form::Scrape);
    assert_eq!(
        scrape,
        "# HELP pghoard_compressed_size_ratio stored size of the last file by its plain size\n\
         # TYPE pghoard_compressed_size_ratio gauge\n\
         pghoard_compressed_size_ratio{site=\"a\"} 2.0\n\
         pghoard_compressed_size_ratio{site=\"b\"} 0.25\n\
         # HELP pghoard_basebackup_failed basebackups that failed\n\
         # TYPE pghoard_basebackup_failed untyped\n\
         pghoard_basebackup_failed 7\n\
         # HELP pghoard_events_total events in the log since it was begun\n\
         # TYPE pghoard_events_total counter\n\
         pghoard_events_total 9\n"
    );
    let push = exposition::render(&samples[2..], &config::Tags::new(), Form::Push);
    assert_eq!(
        push,
        "# TYPE pghoard_basebackup_failed counter\n\
         pghoard_basebackup_failed 7\n\
         # TYPE pghoard_events_total counter\n\
         pghoard_events_total 9\n"
    );
}

#[test]
fn statsd_lines_are_telegrafs_or_datadogs() {
    let ratio = || sample(RATIO, &[("site", "a"), ("type", "xlog")], Value::Real(0.5));
    let failed = || sample(FAILED, &[], Value::Whole(2));
    let hostile = || sample(RATIO, &[("site", "a,b:c|d=e#f@g\nh")], Value::Whole(1));
    for (sample, more, telegraf, datadog) in [
        (
            ratio(),
            tags(&[("app", "x")]),
            "pghoard.compressed_size_ratio,app=x,site=a,type=xlog:0.5|g",
            "pghoard.compressed_size_ratio:0.5|g|#app:x,site:a,type:xlog",
        ),
        (
            failed(),
            tags(&[]),
            "pghoard.basebackup_failed:2|c",
            "pghoard.basebackup_failed:2|c",
        ),
        (
            failed(),
            tags(&[("app", "x")]),
            "pghoard.basebackup_failed,app=x:2|c",
            "pghoard.basebackup_failed:2|c|#app:x",
        ),
        (
            hostile(),
            tags(&[]),
            "pghoard.compressed_size_ratio,site=a_b_c_d_e_f_g_h:1|g",
            "pghoard.compressed_size_ratio:1|g|#site:a_b_c_d_e_f_g_h",
        ),
    ] {
        for (format, line) in [
            (StatsdFormat::Telegraf, telegraf),
            (StatsdFormat::Datadog, datadog),
        ] {
            let samples = [sample.clone()];
            let sent = statsd::render(&samples, &mut Sent::upto(&[]), &more, format);
            assert_eq!(sent, [line]);
        }
    }
}

#[test]
fn a_counter_goes_to_statsd_as_what_it_grew_by() {
    let none = config::Tags::new();
    let failed = |value| sample(FAILED, &[], Value::Whole(value));
    let mut sent = Sent::upto(&[failed(5)]);
    for (value, expect) in [
        (5, None),
        (7, Some("pghoard.basebackup_failed:2|c")),
        (7, None),
        (8, Some("pghoard.basebackup_failed:1|c")),
    ] {
        let lines = statsd::render(&[failed(value)], &mut sent, &none, StatsdFormat::Telegraf);
        assert_eq!(lines.first().map(String::as_str), expect);
    }
    // A series that did not exist before is all new.
    let lines = statsd::render(
        &[sample(EVENTS, &[], Value::Whole(3))],
        &mut sent,
        &none,
        StatsdFormat::Datadog,
    );
    assert_eq!(lines, ["pghoard.events_total:3|c"]);
}

#[test]
fn datagrams_are_whole_lines_and_not_too_large() {
    let samples = sampled(&rich());
    let none = config::Tags::new();
    let datagrams = statsd::render(
        &samples,
        &mut Sent::upto(&[]),
        &none,
        StatsdFormat::Telegraf,
    );
    assert!(datagrams.len() > 1);
    assert!(datagrams.iter().all(|datagram| datagram.len() <= 1_400));
    let lines: Vec<&str> = datagrams.iter().flat_map(|d| d.lines()).collect();
    assert!(lines.iter().all(|line| line.starts_with("pghoard.")));
    let zero = |s: &&Sample| s.metric.kind == Kind::Counter && s.value == Value::Whole(0);
    assert_eq!(
        lines.len(),
        samples.len() - samples.iter().filter(zero).count()
    );
}
