//! The clock against servers on loopback: honest, silent, refusing, lying. No clock is set.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, thread};

use pghoard::Outcome;
use serde_json::{Value, json};

use super::{Clock, Settings, Time, start};
use crate::testing::wait::{PATIENCE, wait_until};

/// How a server answers.
#[derive(Clone, Copy)]
enum Manner {
    /// With the time, and so many seconds more.
    Tells(i64),
    Silent,
    Kiss,
    OtherOrigin,
    Unsynchronised,
    Stratum(u8),
    Short,
}

/// Its address, as the settings name it.
fn server(manner: Manner) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut bytes = [0; 48];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            if let Some(answer) = answer(&bytes, manner) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
    address
}

/// RFC 5905 section 7.3.
fn answer(question: &[u8; 48], manner: Manner) -> Option<Vec<u8>> {
    let mut bytes = [0; 48];
    (bytes[0], bytes[1]) = (0b00_100_100, 2);
    bytes[24..32].copy_from_slice(&question[40..48]);
    let mut seconds = 0;
    match manner {
        Manner::Tells(more) => seconds = more,
        Manner::Silent => return None,
        Manner::Kiss => {
            bytes[1] = 0;
            bytes[12..16].copy_from_slice(b"RATE");
        }
        Manner::OtherOrigin => bytes[31] ^= 1,
        Manner::Unsynchronised => bytes[0] = 0b11_100_100,
        Manner::Stratum(stratum) => bytes[1] = stratum,
        Manner::Short => return Some(bytes[..40].to_vec()),
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let whole = i64::try_from(now.as_secs()).unwrap() + 2_208_988_800 + seconds;
    // The era after 2036 begins at zero again.
    let whole = whole & 0xffff_ffff;
    let fraction = (u64::from(now.subsec_nanos()) << 32) / 1_000_000_000;
    for at in [32, 40] {
        bytes[at..at + 4].copy_from_slice(&u32::try_from(whole).unwrap().to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&u32::try_from(fraction).unwrap().to_be_bytes());
    }
    Some(bytes.to_vec())
}

/// A clock that is only told what to do.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<i64>>>);

impl Clock for Told {
    fn step(&mut self, by_us: i64) -> Outcome<()> {
        self.0.lock().unwrap().push(by_us);
        Ok(())
    }

    fn rate(&mut self, _ppm: i32) -> Outcome<()> {
        Ok(())
    }

    fn mark(&mut self, _error_us: Option<i64>) -> Outcome<()> {
        Ok(())
    }
}

struct Bench {
    time: Time,
    told: Told,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn start(servers: &[String], others: fn() -> Vec<IpAddr>) -> Bench {
        let scratch = tempfile::tempdir().unwrap();
        let told = Told::default();
        let file = scratch.path().join("clock.json");
        let clock = Box::new(told.clone());
        let time = start(settings(servers), Box::new(others), clock, &file).unwrap();
        Bench {
            time,
            told,
            scratch,
        }
    }

    fn file(&self) -> Value {
        let text = fs::read(self.scratch.path().join("clock.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// The whole seconds of every step.
    fn steps(&self) -> Vec<i64> {
        let steps = self.told.0.lock().unwrap();
        let whole = |us: &i64| (us + 500_000).div_euclid(1_000_000);
        steps.iter().map(whole).collect()
    }
}

fn settings(servers: &[String]) -> Settings {
    Settings::parse(&json!({ "servers": servers })).unwrap()
}

#[test]
fn an_honest_server_sets_the_clock_by_any_amount_at_boot() {
    for seconds in [3, 86_400, 400_000_000] {
        let name = server(Manner::Tells(seconds));
        let bench = Bench::start(std::slice::from_ref(&name), Vec::new);
        assert!(bench.time.first_sync(PATIENCE));
        wait_until("the step", PATIENCE, || bench.steps() == [seconds]);
        let status = bench.time.status();
        assert_eq!(status.server, Some(name.clone()));
        let why = format!("{name} was asked and the clock is right");
        let expected = json!({"synchronised": true, "why": why});
        wait_until("the file", PATIENCE, || bench.file() == expected);
    }
}

#[test]
fn whoever_does_not_tell_the_time_is_not_believed() {
    let rows = [
        (Manner::Silent, "no answer"),
        (Manner::Kiss, "it does not want to be asked: Rate exceeded"),
        (Manner::OtherOrigin, "originate"),
        (Manner::Unsynchronised, "not synchronized"),
        (Manner::Stratum(16), "not synchronized"),
        (Manner::Short, "short"),
        (
            Manner::Tells(-600_000_000),
            "its time is before this program was written",
        ),
    ];
    for (manner, expected) in rows {
        let bench = Bench::start(&[server(manner)], Vec::new);
        wait_until(expected, PATIENCE, || {
            bench.time.status().why.contains(expected)
        });
        assert_eq!(bench.steps(), [0; 0]);
        assert!(!bench.time.first_sync(Duration::ZERO));
        wait_until("the file", PATIENCE, || {
            bench.file()["synchronised"] == json!(false)
        });
    }
}

#[test]
fn two_liars_do_not_outvote_three() {
    let tells = [0, 7000, 0, 7000, 0].map(|seconds| server(Manner::Tells(seconds)));
    let bench = Bench::start(&tells, Vec::new);
    assert!(bench.time.first_sync(PATIENCE));
    assert!(bench.steps().iter().all(|step| *step == 0));
}

#[test]
fn two_that_disagree_set_nothing() {
    let tells = [0, 7000].map(|seconds| server(Manner::Tells(seconds)));
    let bench = Bench::start(&tells, Vec::new);
    let said = || {
        bench
            .time
            .status()
            .why
            .contains("the time servers disagree")
    };
    wait_until("the disagreement", PATIENCE, said);
    assert_eq!(bench.steps(), [0; 0]);
}

#[test]
fn other_servers_are_asked_when_they_are_named() {
    let bench = Bench::start(&[], Vec::new);
    let nobody = "no time server is known; name one under appliance.time.servers";
    wait_until("the word", PATIENCE, || bench.time.status().why == nobody);
    wait_until("the file", PATIENCE, || {
        bench.file()["why"] == json!(nobody)
    });
    bench.time.apply(settings(&[server(Manner::Tells(5))]));
    assert!(bench.time.first_sync(PATIENCE));
    let before = bench.time.status();
    bench.time.apply(settings(&[server(Manner::Tells(5))]));
    wait_until("the other", PATIENCE, || {
        bench.time.status().server != before.server
    });
}

#[test]
fn those_of_dhcp_are_asked_when_none_is_named() {
    // Nobody listens there, which is said of it.
    let dhcp = || vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, 99))];
    let bench = Bench::start(&[], dhcp);
    let said = || bench.time.status().why.contains("(127.0.0.99: ");
    wait_until("its name", PATIENCE, said);
    bench.time.sync_now();
}
