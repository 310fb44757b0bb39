//! The test bed itself: every major of the matrix starts, answers, gets a standby that takes over,
//! and dies without a trace. When this fails, look at the machine, not at the product.

use std::path::Path;

use crate::support::postgres::{Options, Server, install, lsn, lsn_text};
use crate::support::process::Scratch;
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, wait_until};

#[test]
fn postgres_13() {
    check(13);
}

#[test]
fn postgres_14() {
    check(14);
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_16() {
    check(16);
}

#[test]
fn postgres_17() {
    check(17);
}

#[test]
fn postgres_18() {
    check(18);
}

fn check(major: u32) {
    let Some(install) = install(major) else {
        return;
    };
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let tls = install.has_tls().then_some(&certificates.server);
    let options = Options {
        segment_mib: Some(1),
        checksums: true,
        tls,
        ..Options::default()
    };
    let mut primary = Server::start(install, &options);

    let version: u32 = primary.one("show server_version_num").parse().unwrap();
    assert_eq!(version / 10_000, major);
    assert_eq!(primary.one("show wal_segment_size"), "1MB");
    assert_eq!(primary.one("show data_checksums"), "on");
    assert_eq!(
        primary.one("show ssl"),
        if tls.is_some() { "on" } else { "off" }
    );

    let mut standby = Server::standby_of(&primary);
    assert!(standby.in_recovery());
    primary.sql("create table rows as select generate_series(1, 1000) as n");
    wait_until("the standby to stream", PATIENCE, || {
        standby
            .try_sql("select count(*) from rows")
            .is_ok_and(|rows| rows == ["1000"])
    });
    primary.kill9();
    primary.destroy_data();
    standby.promote();
    standby.wait_primary();
    assert_eq!(standby.one("select count(*) from rows"), "1000");

    let (data, lock) = (standby.data.clone(), standby.data.join("postmaster.pid"));
    assert!(lock.exists());
    standby.stop();
    assert!(!lock.exists());
    drop(standby);
    assert!(!Path::new(&data).exists());
}

#[test]
fn a_server_stops_the_test_with_its_log_when_it_cannot_start() {
    let Some(install) = install(15) else { return };
    let broken = Options {
        conf: &["wal_level=nonsense"],
        ..Options::default()
    };
    let start = std::panic::AssertUnwindSafe(|| Server::start(install, &broken));
    let panic = std::panic::catch_unwind(start)
        .err()
        .expect("no such wal_level");
    let message = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(message.contains("wal_level"), "{message}");
}

#[test]
fn positions_are_read_and_written_as_postgresql_does() {
    assert_eq!(lsn("16/B374D848"), 0x16_B374_D848);
    assert_eq!(lsn_text(0x16_B374_D848), "16/B374D848");
}
