//! A server that stops: the daemon neither keeps it from stopping nor loses what it sent.

use serde_json::json;

use super::support::daemon::Daemon;
use super::support::postgres::{Options, Server, majors};

/// `Server::stop` is a fast shutdown with a deadline: a walsender that waits for us would miss it.
#[test]
fn s27_a_fast_shutdown_does_not_wait_for_the_store() {
    for install in majors() {
        // Acknowledging what is spooled never makes a server wait: one major shows it.
        let acks = if install.major == 15 {
            &["stored", "spooled"][..]
        } else {
            &["stored"]
        };
        for ack in acks {
            let mut server = Server::start(install, &Options::default());
            let mut daemon = Daemon::over(&[&server], json!({ "ack": ack }));
            daemon.wait_backups(1);
            server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
            server.stop();
            server.up();
            daemon.wait_caught_up(&server);
            daemon.verify_events();
        }
    }
}
