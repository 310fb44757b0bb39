//! What opening a log is made of, step by step, and what a process that has opened one weighs.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use machine::{Site, State};
use pghoard::codec::{Compression, Encoder, Encoding};
use pghoard::journal::chunk;
use pghoard::journal::encoding::parse;
use pghoard::journal::log::Log;
use redb::{Builder, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, TableDefinition};
use sha2::{Digest, Sha256};

use super::{mib, timed};

pub const COLUMNS: [&str; 9] = [
    "events",
    "open s",
    "CPU s",
    "check s",
    "scan s",
    "chain s",
    "decode s",
    "state MiB",
    "peak MiB",
];
/// This program again, as a process that opens a log and tells its memory.
pub const WEIGH: &str = "--weigh";

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
const DIGEST_BYTES: usize = 32;

/// Each step of opening by itself, over the same log.
pub fn split(path: &Path, lines: &[(u64, Vec<u8>)]) -> [String; 9] {
    let check = timed(|| drop(builder().set_check_integrity_on_open(true).create(path)));
    let database = builder().create(path).unwrap();
    let scan = timed(|| {
        let read = database.begin_read().unwrap();
        let table = read.open_table(EVENTS).unwrap();
        let bytes: usize = table
            .iter()
            .unwrap()
            .map(|l| l.unwrap().1.value().len())
            .sum();
        assert!(bytes > 0);
    });
    drop(database);
    let chain = timed(|| {
        for (_, line) in lines {
            std::hint::black_box(Sha256::digest(line));
        }
    });
    let decode = timed(|| {
        for (_, line) in lines {
            std::hint::black_box(parse(&line[DIGEST_BYTES..]).unwrap());
        }
    });
    let told = Command::new(std::env::current_exe().unwrap())
        .arg(WEIGH)
        .arg(path)
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let [wall, cpu, before, after, peak]: [u64; 5] = told
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
    [
        format!("{}", lines.len()),
        format!("{:.3}", wall as f64 / 1e3),
        format!("{:.3}", cpu as f64 / 1e3),
        seconds(check),
        seconds(scan),
        seconds(chain),
        seconds(decode),
        format!("{:.1}", mib(after - before)),
        format!("{:.1}", mib(peak)),
    ]
}

/// Stored bytes an event when a site's part of the log is exported, by compression.
pub fn exported(site: &Site, lines: &[(u64, Vec<u8>)]) -> String {
    let sealed = chunk::seal(std::slice::from_ref(site), lines).unwrap();
    let encoded = |compression, level| {
        let encoding = Encoding {
            compression,
            level,
            threads: 0,
            encryption: None,
        };
        let mut encoder = Encoder::new(Vec::new(), &encoding).unwrap();
        encoder.write_all(&sealed.content).unwrap();
        let (bytes, _) = encoder.finish().unwrap();
        bytes.len() as f64 / sealed.events as f64
    };
    let (snappy, zstd) = (
        encoded(Compression::Snappy, 0),
        encoded(Compression::Zstd, 3),
    );
    let plain = sealed.content.len() as f64 / sealed.events as f64;
    format!("exported, bytes an event: {plain:.0} plain, {snappy:.0} snappy, {zstd:.0} zstd")
}

/// Milliseconds of opening and folding, on the clock and of the processors; resident bytes before
/// it, after it with log and state still held, and at most.
pub fn weigh(path: &Path) {
    let (before, spent) = (memory("VmRSS:"), cpu_ms());
    let mut state = State::default();
    let mut log = None;
    let wall = timed(|| {
        log = Some(Log::open(path, &mut |envelope| state.apply(envelope)).unwrap());
    });
    let (after, peak) = (memory("VmRSS:"), memory("VmHWM:"));
    let (wall, cpu) = (wall.as_millis(), cpu_ms() - spent);
    println!("{wall} {cpu} {before} {after} {peak}");
    std::hint::black_box((log, state));
}

/// Of this process so far: user and system time, in hundredths of a second (proc_pid_stat(5)).
fn cpu_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10
}

fn memory(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(2 << 20);
    builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder
}
