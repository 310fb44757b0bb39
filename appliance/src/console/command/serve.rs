//! `restore --serve`: a basebackup for a database host to fetch with curl and tar, by a token that
//! holds for once, and how far it is.

use std::thread;
use std::time::{Duration, Instant};

use machine::Class;
use pghoard::publish::text::size;
use pghoard::tool::screen::View;
use pghoard::{Failure, Outcome};
use serde_json::{Map, Value, json};

use super::Session;
use super::restore::targeted;
use crate::console::daemon::Daemon;
use crate::console::line::{IDLE, say};
use crate::console::word::Restore;

pub fn run(session: &mut Session, site: &str, wish: &Restore) -> Outcome<()> {
    let daemon = Daemon::of(&session.places)?;
    let url = match &wish.url {
        Some(url) => url.clone(),
        None => reachable(session)?,
    };
    let body = request(wish, &url, &session.places.who());
    // The daemon records it, as it makes the token.
    let made = daemon.hand_out(site, &body)?;
    let made = View(&made);
    let bytes = match made.number("bytes") {
        0 => String::new(),
        bytes => format!(", about {}", size(bytes)),
    };
    say(&format!(
        "Basebackup {}{bytes}.\nIn an empty directory, as the user PostgreSQL runs as:\n\n{}\n\n\
         The token in it holds once, and for the WAL until {}.\n",
        made.text("backup"),
        made.text("command"),
        made.time("expires"),
    ));
    say("Waiting until it is fetched; Ctrl-C leaves it to go on without this console.\n");
    follow(session, &daemon, &made.text("id"))
}

fn request(wish: &Restore, url: &str, who: &str) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    let text = |value: &Option<String>| value.as_deref().map(Value::from);
    put("backup", text(&wish.backup));
    put("time", text(&wish.target_time));
    put("lsn", text(&wish.target_lsn));
    put("name", text(&wish.target_name));
    put("xid", text(&wish.target_xid));
    put("immediate", wish.immediate.then_some(json!(true)));
    put("timeline", text(&wish.timeline));
    put("minutes", wish.minutes.map(Value::from));
    put("url", Some(json!(url)));
    put("by", Some(json!(who)));
    match wish.standby {
        true => put("role", Some(json!("standby"))),
        false => put("action", targeted(wish).then_some(json!("promote"))),
    }
    Value::Object(body)
}

/// The daemon as another host sees it.
fn reachable(session: &Session) -> Outcome<String> {
    let config = session.places.config()?;
    let status = session.control.status()?;
    let scheme = match config.http_tls {
        Some(_) => "https",
        None => "http",
    };
    let host = match config.http_address.as_str() {
        "" | "0.0.0.0" | "::" => address(&status).ok_or_else(|| {
            Failure::new(
                Class::Network,
                "this machine has no address that others could reach",
            )
            .hint("say --url http://HOST:PORT")
        })?,
        host if host == "localhost" || host.starts_with("127.") || host == "::1" => {
            let message = format!("the daemon listens on {host} alone");
            return Err(Failure::new(Class::Config, message)
                .hint("'config set http_address 0.0.0.0' with a login, or say --url"));
        }
        host => host.to_owned(),
    };
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host,
    };
    Ok(format!("{scheme}://{host}:{}", config.http_port))
}

/// The first that is not of this link alone, IPv4 before IPv6.
fn address(status: &Value) -> Option<String> {
    let status = View(status);
    let links = status.list("network").iter();
    let all = links.flat_map(|link| View(link).list("addresses"));
    let all: Vec<&str> = all
        .filter_map(Value::as_str)
        .filter_map(|text| text.split('/').next())
        .filter(|text| !text.starts_with("169.254.") && !text.starts_with("fe80:"))
        .collect();
    let found = all.iter().find(|text| !text.contains(':')).or(all.first());
    found.map(|text| (*text).to_owned())
}

const LOOK: Duration = Duration::from_secs(1);

fn follow(session: &mut Session, daemon: &Daemon, id: &str) -> Outcome<()> {
    let mut said = String::new();
    let mut since = Instant::now();
    loop {
        let all = daemon.hand_outs()?;
        let own = all.iter().find(|one| View(one).text("id") == id);
        let Some(own) = own else {
            say("the token holds no more\n");
            return Ok(());
        };
        let line = progress(&View(own));
        if line != said {
            say(&format!("{line}\n"));
            said = line;
            since = Instant::now();
        }
        match View(own).text("state").as_str() {
            "sent" => return Ok(()),
            "broken" => {
                let message = "the connection broke off: the token is used up, hand it out again";
                return Err(Failure::new(Class::Interrupted, message));
            }
            _ => {}
        }
        // A console that nobody looks at is left.
        if session.terminal.broken() || since.elapsed() > IDLE {
            say("it goes on without this console; 'hand-outs' shows how far it is\n");
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}

fn progress(one: &View<'_>) -> String {
    let sent = one.number("bytes_sent");
    let of = match one.number("bytes") {
        0 => String::new(),
        bytes => format!(" of about {}", size(bytes)),
    };
    match one.text("state").as_str() {
        "waiting" => "nobody asked for it yet".to_owned(),
        "sending" => format!("{}{of} sent", size(sent)),
        "sent" => format!(
            "sent, {}; {} WAL files since",
            size(sent),
            one.number("wal_files")
        ),
        "broken" => format!("BROKEN OFF after {}{of}", size(sent)),
        other => other.to_owned(),
    }
}

pub fn list(session: &Session) -> Outcome<()> {
    let all = Daemon::of(&session.places)?.hand_outs()?;
    if all.is_empty() {
        say("nothing is handed out\n");
    }
    for one in &all {
        let one = View(one);
        let (site, backup, until) = (one.text("site"), one.text("backup"), one.time("expires"));
        say(&format!(
            "{site}, {backup}, until {until}: {}\n",
            progress(&one)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_becomes_a_request() {
        let wish = Restore {
            backup: Some("latest".to_owned()),
            target_time: Some("2026-11-22 09:00:00".to_owned()),
            minutes: Some(5),
            ..Restore::default()
        };
        let url = "http://10.0.2.15:16000";
        assert_eq!(
            request(&wish, url, "console ttyS0"),
            json!({ "action": "promote", "backup": "latest", "by": "console ttyS0", "minutes": 5,
                "time": "2026-11-22 09:00:00", "url": url })
        );
        let standby = Restore {
            standby: true,
            immediate: true,
            ..Restore::default()
        };
        assert_eq!(
            request(&standby, url, "me"),
            json!({ "by": "me", "immediate": true, "role": "standby", "url": url })
        );
    }

    #[test]
    fn others_reach_us_by_an_address_that_is_not_of_a_link() {
        for (addresses, expect) in [
            (json!(["fe80::1/64", "10.0.2.15/24"]), Some("10.0.2.15")),
            (json!(["fec0::1/64", "10.0.2.15/24"]), Some("10.0.2.15")),
            (json!(["169.254.1.1/16", "fec0::1/64"]), Some("fec0::1")),
            (json!(["fe80::1/64"]), None),
            (json!([]), None),
        ] {
            let status = json!({ "network": [{ "addresses": addresses }] });
            assert_eq!(address(&status).as_deref(), expect, "{addresses}");
        }
    }

    #[test]
    fn progress_is_told_in_words() {
        for (one, expect) in [
            (json!({ "state": "waiting" }), "nobody asked for it yet"),
            (
                json!({ "state": "sending", "bytes_sent": 1024, "bytes": 4096 }),
                "1.0 KiB of about 4.0 KiB sent",
            ),
            (
                json!({ "state": "sending", "bytes_sent": 1024, "bytes": null }),
                "1.0 KiB sent",
            ),
            (
                json!({ "state": "sent", "bytes_sent": 1024, "wal_files": 3 }),
                "sent, 1.0 KiB; 3 WAL files since",
            ),
            (
                json!({ "state": "broken", "bytes_sent": 1024, "bytes": 4096 }),
                "BROKEN OFF after 1.0 KiB of about 4.0 KiB",
            ),
        ] {
            assert_eq!(progress(&View(&one)), expect, "{one}");
        }
    }
}
