//! Logins of every kind at real servers and at odd ones: passwords, TLS, several hosts.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use machine::Class;
use pghoard::pg::conninfo::{Conninfo, Defaults};
use pghoard::pg::{Answer, Connection, Mode};
use smol::block_on;

use crate::support::PATIENCE;
use crate::support::postgres::{Options, Server, install};
use crate::support::process::Scratch;
use crate::support::tls::Certificates;

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

pub fn connect(text: &str, mode: Mode) -> Answer<Connection> {
    let info = Conninfo::from_text(text, &Defaults::default())?;
    block_on(Connection::connect(&info, mode, deadline()))
}

pub fn query(connection: &mut Connection, sql: &str) -> Vec<String> {
    let rows = block_on(connection.simple_query(sql, deadline())).unwrap();
    rows.iter()
        .map(|row| row.text(0).unwrap().to_owned())
        .collect()
}

#[test]
fn passwords_of_every_method_are_told_right_from_wrong() {
    let Some(install) = install(15) else { return };
    let server = Server::start(
        install,
        &Options {
            hba: &[
                "host all clear 127.0.0.1/32 password",
                "host all hashed 127.0.0.1/32 md5",
                "host all,replication scram 127.0.0.1/32 scram-sha-256",
                "host all nobody 127.0.0.1/32 reject",
            ],
            ..Options::default()
        },
    );
    server.sql("create role clear login password 'right: \\one'");
    server.sql("set password_encryption=md5; create role hashed login password 'right: \\one'");
    server.sql("create role scram login replication password 'right: \\one'");
    server.sql("create role nobody login");
    let files = Scratch::new();
    let good = files.file(
        "good",
        "127.0.0.1:*:postgres,x:*:no\n*:*:*:*:right\\: \\\\one\n",
    );
    let bad = files.file("bad", "*:*:*:*:wrong\n");
    let loose = files.file("loose", "*:*:*:*:right\\: \\\\one\n");
    fs::set_permissions(&good, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    for user in ["clear", "hashed", "scram"] {
        let check = |source: &str, expected: Result<(), &str>| {
            let text = format!(
                "host=127.0.0.1 port={} user={user} dbname=postgres {source}",
                server.port
            );
            match (connect(&text, Mode::Plain), expected) {
                (Ok(mut connection), Ok(())) => {
                    assert_eq!(query(&mut connection, "select current_user"), [user]);
                }
                (Err(fault), Err(expected)) => {
                    let line = fault.to_string();
                    assert_eq!(fault.failure.class, Class::Auth, "{line}");
                    assert!(line.contains(expected), "{line}");
                    assert!(line.contains(user) && line.contains("127.0.0.1"), "{line}");
                    assert!(!line.contains("wrong") && !line.contains("right"), "{line}");
                    assert!(!line.contains('\n'), "{line}");
                }
                (Ok(_), Err(_)) => panic!("{text} was let in"),
                (Err(fault), Ok(())) => panic!("{text}: {fault}"),
            }
        };
        check(r"password='right: \\one'", Ok(()));
        check("password=wrong", Err("check the password in the node"));
        check("", Err("there is none"));
        check(&format!("passfile={}", good.display()), Ok(()));
        check(&format!("passfile={}", bad.display()), Err("check"));
        check(&format!("passfile={}", loose.display()), Err("0600"));
    }
    let at = format!("host=127.0.0.1 port={}", server.port);
    let walsender = format!("{at} user=scram passfile={}", good.display());
    assert!(connect(&walsender, Mode::Physical).is_ok());
    for (user, class) in [("nobody", Class::Denied), ("missing", Class::Denied)] {
        let fault = connect(&format!("{at} user={user} dbname=postgres"), Mode::Plain)
            .err()
            .expect("not let in");
        assert_eq!(fault.failure.class, class, "{fault}");
    }
    let fault = connect(&format!("{at} user=postgres dbname=none"), Mode::Plain).err();
    assert_eq!(fault.unwrap().failure.class, Class::Config);
    let fault = connect("host=127.0.0.1 port=1 user=postgres", Mode::Plain).err();
    assert_eq!(fault.unwrap().failure.class, Class::Network);
}

/// One row: what we ask for, and how it must end; `tls` says whether the session is encrypted.
struct Row {
    text: &'static str,
    expected: Result<bool, Class>,
}

const fn row(text: &'static str, expected: Result<bool, Class>) -> Row {
    Row { text, expected }
}

fn check_tls(server: &Server, rows: &[Row], certificates: &Certificates) {
    for row in rows {
        let text = row
            .text
            .replace("CA", &certificates.authority.display().to_string());
        let text = text.replace(
            "OTHER",
            &certificates.wrong_name.certificate.display().to_string(),
        );
        let text = format!("port={} dbname=postgres {text}", server.port);
        match (connect(&text, Mode::Plain), row.expected) {
            (Ok(mut connection), Ok(tls)) => {
                let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
                let found = query(&mut connection, sql);
                assert_eq!(found, [if tls { "t" } else { "f" }], "{text}");
            }
            (Err(fault), Err(class)) => assert_eq!(fault.failure.class, class, "{text}: {fault}"),
            (Ok(_), Err(_)) => panic!("{text} was let in"),
            (Err(fault), Ok(_)) => panic!("{text}: {fault}"),
        }
    }
}

/// At a server that encrypts where it is asked to.
const ENCRYPTING: &[Row] = &[
    row("host=127.0.0.1 user=postgres sslmode=disable", Ok(false)),
    row("host=127.0.0.1 user=postgres sslmode=allow", Ok(false)),
    row("host=127.0.0.1 user=onlytls sslmode=allow", Ok(true)),
    row(
        "host=127.0.0.1 user=onlytls sslmode=disable",
        Err(Class::Denied),
    ),
    row("host=127.0.0.1 user=postgres sslmode=prefer", Ok(true)),
    row("host=127.0.0.1 user=onlyplain sslmode=prefer", Ok(false)),
    row(
        "host=127.0.0.1 user=onlyplain sslmode=require",
        Err(Class::Denied),
    ),
    row("host=127.0.0.1 user=postgres sslmode=require", Ok(true)),
    row(
        "host=127.0.0.1 user=postgres sslmode=require sslrootcert=CA",
        Ok(true),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=require sslrootcert=OTHER",
        Err(Class::Auth),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=prefer sslrootcert=OTHER",
        Ok(false),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-ca sslrootcert=CA",
        Ok(true),
    ),
    row(
        "host=elsewhere hostaddr=127.0.0.1 user=postgres sslmode=verify-ca sslrootcert=CA",
        Ok(true),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-ca sslrootcert=OTHER",
        Err(Class::Auth),
    ),
    row(
        "host=localhost hostaddr=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=CA",
        Ok(true),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=CA",
        Ok(true),
    ),
    row(
        "host=elsewhere hostaddr=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=CA",
        Err(Class::Auth),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=system",
        Err(Class::Auth),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-ca sslrootcert=/none",
        Err(Class::Config),
    ),
    row(
        "host=127.0.0.1 user=scram password=p sslmode=require channel_binding=require",
        Ok(true),
    ),
    row(
        "host=127.0.0.1 user=scram password=p sslmode=require channel_binding=disable",
        Ok(true),
    ),
    row(
        "host=127.0.0.1 user=scram password=p sslmode=disable channel_binding=require",
        Err(Class::Auth),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=require channel_binding=require",
        Err(Class::Auth),
    ),
    row(
        "host=127.0.0.1 user=scram password=q sslmode=require",
        Err(Class::Auth),
    ),
];

/// At a server that cannot.
const PLAIN: &[Row] = &[
    row("host=127.0.0.1 user=postgres sslmode=allow", Ok(false)),
    row("host=127.0.0.1 user=postgres sslmode=prefer", Ok(false)),
    row(
        "host=127.0.0.1 user=postgres sslmode=require",
        Err(Class::Unsupported),
    ),
    row(
        "host=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=CA",
        Err(Class::Unsupported),
    ),
];

#[test]
fn sslmodes_mean_what_libpq_means() {
    let Some(install) = install(15) else { return };
    let scratch = Scratch::new();
    let certificates = Certificates::make(&scratch);
    let hba = [
        "hostssl all onlytls 127.0.0.1/32 trust",
        "hostnossl all onlyplain 127.0.0.1/32 trust",
        "host all onlytls,onlyplain 127.0.0.1/32 reject",
        "host all scram 127.0.0.1/32 scram-sha-256",
    ];
    let with = Options {
        hba: &hba,
        tls: Some(&certificates.server),
        ..Options::default()
    };
    let server = Server::start(install, &with);
    for role in ["onlytls", "onlyplain", "scram"] {
        server.sql(&format!("create role {role} login password 'p'"));
    }
    check_tls(&server, ENCRYPTING, &certificates);
    let plain = Server::start(install, &Options::default());
    check_tls(&plain, PLAIN, &certificates);
}

#[test]
fn a_self_signed_certificate_is_its_own_authority() {
    let Some(install) = install(15) else { return };
    let scratch = Scratch::new();
    let mut certificates = Certificates::make(&scratch);
    certificates.server.certificate = certificates.authority.clone();
    certificates.server.key = certificates.authority.with_file_name("ca.key");
    let with = Options {
        tls: Some(&certificates.server),
        ..Options::default()
    };
    let server = Server::start(install, &with);
    let rows = [
        row("host=127.0.0.1 user=postgres sslmode=require", Ok(true)),
        row(
            "host=127.0.0.1 user=postgres sslmode=verify-ca sslrootcert=CA",
            Ok(true),
        ),
        row(
            "host=127.0.0.1 user=postgres sslmode=verify-full sslrootcert=CA",
            Err(Class::Auth),
        ),
    ];
    check_tls(&server, &rows, &certificates);
}

#[test]
fn the_first_host_that_serves_is_taken() {
    let Some(install) = install(15) else { return };
    let primary = Server::start(install, &Options::default());
    let standby = Server::standby_of(&primary);
    let hosts = format!("host=127.0.0.1,{0},127.0.0.1", standby.home().display());
    let ports = format!("port=1,{},{}", standby.port, primary.port);
    for (target, recovering) in [("any", "t"), ("standby", "t"), ("primary", "f")] {
        let text =
            format!("{hosts} {ports} user=postgres dbname=postgres target_session_attrs={target}");
        let mut connection = connect(&text, Mode::Plain).unwrap();
        let found = query(&mut connection, "select pg_is_in_recovery()");
        assert_eq!(found, [recovering], "{target}");
    }
}

/// A peer that speaks the protocol as an old or odd server would.
fn fake(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut startup = [0; 4];
        socket.read_exact(&mut startup).unwrap();
        socket.write_all(answer).unwrap();
        let _until_the_client_leaves = socket.read_to_end(&mut Vec::new());
    });
    port
}

#[test]
fn odd_servers_are_refused_by_name_or_tolerated() {
    const NEGOTIATES: &[u8] = b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0R\0\0\0\x08\0\0\0\0\
        S\0\0\0\x19server_version\x009.6.1\0Z\0\0\0\x05I";
    const MODERN: &[u8] = b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0R\0\0\0\x08\0\0\0\0\
        S\0\0\0\x18server_version\x0018.1\0Z\0\0\0\x05I";
    const HUGE: &[u8] = b"R\x7f\0\0\0";
    const KERBEROS: &[u8] = b"R\0\0\0\x08\0\0\0\x07";
    for (answer, expected) in [
        (NEGOTIATES, Err((Class::Unsupported, "9.6.1"))),
        (MODERN, Ok(180_001)),
        (HUGE, Err((Class::Corrupt, "64 MiB"))),
        (KERBEROS, Err((Class::Unsupported, "pg_hba.conf"))),
        (&b""[..], Err((Class::Timeout, "deadline"))),
    ] {
        let text = format!(
            "host=127.0.0.1 port={} user=u sslmode=disable",
            fake(answer)
        );
        let info = Conninfo::from_text(&text, &Defaults::default()).unwrap();
        let patience = Duration::from_millis(if answer.is_empty() { 50 } else { 60_000 });
        let limit = Instant::now() + patience;
        match (
            block_on(Connection::connect(&info, Mode::Plain, limit)),
            expected,
        ) {
            (Ok(connection), Ok(version)) => assert_eq!(connection.version(), version),
            (Err(fault), Err((class, words))) => {
                assert_eq!(fault.failure.class, class, "{fault}");
                assert!(fault.to_string().contains(words), "{fault}");
            }
            (Ok(_), Err(_)) => panic!("a server that says {answer:?} was accepted"),
            (Err(fault), Ok(_)) => panic!("{fault}"),
        }
    }
}
