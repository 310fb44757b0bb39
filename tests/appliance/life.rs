//! The whole life of a site, as a person at the serial console leads it.

use std::path::Path;
use std::process::Command;

use crate::image::image;
use crate::machine::{HOST, Machine, PROMPT, Place};
use crate::restored::fetch;
use crate::site::{LOGIN, PASSWORD, SITE, Site};
use crate::support::postgres::{Options, Server, install};

/// The first questions, in their order; an empty answer takes what is in brackets.
fn introduce(machine: &mut Machine, server: &Server) {
    let port = server.port.to_string();
    let password = LOGIN.split_once(':').unwrap().1;
    for (question, answer) in [
        ("Hostname", "vault"),
        ("Network", ""),
        ("Time server", ""),
        ("Name of the site", SITE),
        ("Host of the PostgreSQL", HOST),
        ("Its port", port.as_str()),
        ("User with the right", "postgres"),
        ("Password of that user", ""),
        ("TLS:", "disable"),
        ("Replication slot", ""),
        ("Where to keep backups", "local"),
        ("Directory", ""),
        ("Encryption key", "create"),
        ("Name of the key", ""),
        ("Password for the HTTP API", password),
        ("Password of this console", PASSWORD),
        ("Once more", PASSWORD),
        ("Put these settings in force?", "yes"),
    ] {
        machine.expect(question);
        machine.expect_one(&[": ", "[yes/no] "]);
        machine.send(&format!("{answer}\r"));
    }
    machine.expect(PROMPT);
}

#[test]
fn a_site_is_told_backed_up_and_brought_back_to_a_point_in_time_at_the_console() {
    let Some(image) = image() else { return };
    let Some(install) = install(15) else { return };
    let server = Server::start(install, &Options::default());
    server.sql("create table rows (id serial primary key, at timestamptz default now())");
    let site = Site {
        server,
        place: Place::new(image, 4),
    };
    let mut machine = site.place.boot();
    machine.expect("Press Enter");
    let console = (machine.started.elapsed(), machine.cpu_seconds());
    machine.send("\r");
    introduce(&mut machine, &site.server);
    site.wait_backups(1);
    site.write();
    site.wait_caught_up();
    let protected = machine.started.elapsed();
    let memory = idle(&mut machine);
    let (rows, then) = (site.rows(), site.server.one("select now()"));
    site.server.sql("delete from rows");
    site.write();
    site.wait_caught_up();

    let listed = machine.command("list-basebackups");
    assert!(listed.contains(&format!("{SITE}/basebackup")) || listed.contains("Basebackup"));
    let url = format!("http://127.0.0.1:{}", site.place.api);
    machine.send(&format!(
        "restore --serve --url {url} --target-time '{then}'\r"
    ));
    let told = machine.expect("Waiting until it is fetched");
    let fetch_line = told
        .lines()
        .map(str::trim)
        .find(|line| line.contains("curl"))
        .unwrap();
    let mut restored = Server::empty(install);
    fetch(&mut restored, fetch_line);
    machine.expect(PROMPT);
    restored.up();
    restored.wait_primary();
    assert_eq!(restored.one("select count(*) from rows"), rows.to_string());

    let events = machine.command("events -n 60");
    assert!(events.contains("console ttyS0"), "{events}");
    let verified = machine.command("events --verify");
    assert!(!verified.contains("error"), "{verified}");
    machine.send("poweroff\r");
    machine.expect("?");
    machine.send("yes\r");
    machine.wait_off();
    let image = compressed(image);
    eprintln!(
        "image {image} bytes compressed, {memory}, console after {:?} ({:.1} s of the \
         processor), first byte protected after {protected:?}",
        console.0, console.1
    );
}

/// The line of the status page about memory while nobody is logged in.
fn idle(machine: &mut Machine) -> String {
    machine.command("status");
    machine.send("logout\r");
    machine.expect("memory ");
    let line = machine.expect("daemon ").trim().to_owned();
    assert!(line.contains("by 2 processes"), "{line}");
    machine.log_in(Some(PASSWORD));
    line
}

/// In bytes, as one would send it.
fn compressed(image: &Path) -> u64 {
    let packed = Command::new("zstd")
        .args(["-q", "-3", "-c"])
        .arg(image)
        .output();
    packed.unwrap().stdout.len() as u64
}
