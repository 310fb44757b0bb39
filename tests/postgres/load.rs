//! Writers that note down what PostgreSQL promised them: the number of each row whose commit
//! returned, and a position at or after that commit.

use std::fs;
use std::path::PathBuf;

use crate::support::PATIENCE;
use crate::support::postgres::{Server, lsn};
use crate::support::process::{Process, command};
use crate::support::wait_until;

const WRITERS: usize = 3;

/// Writers running against one server; they end when it does.
pub struct Load {
    logs: Vec<PathBuf>,
    processes: Vec<Process>,
}

/// A commit that returned: the row, and a position not before the end of its commit record.
pub struct Promise {
    pub writer: usize,
    pub n: u32,
    pub lsn: u64,
}

/// Commits row after row; the notice reaches the client only after the commit has returned, which
/// with synchronous replication is after the standby's flush. The pause keeps the load at a few
/// hundred rows a second, so that two cores are left for the daemon.
const LOOP: &str = "do $$ begin for n in 1..10000000 loop \
    insert into promises values (WRITER, n, repeat(md5(n::text), 30)); commit; \
    raise notice 'promise % %', n, pg_current_wal_flush_lsn(); \
    perform pg_sleep(0.002); end loop; end $$";

impl Load {
    pub fn start(server: &Server) -> Load {
        server.sql("create table promises (writer int, n int, body text, primary key (writer, n))");
        let mut load = Load {
            logs: Vec::new(),
            processes: Vec::new(),
        };
        for writer in 0..WRITERS {
            let log = server.home().join(format!("writer-{writer}.log"));
            let mut psql = command(server.install.tools.join("psql"), server.home());
            psql.args(["-Xq", "-d", "postgres", "-U", "postgres", "-h"])
                .arg(server.home());
            psql.arg("-p").arg(server.port.to_string());
            psql.arg("-c")
                .arg(LOOP.replace("WRITER", &writer.to_string()));
            load.processes.push(Process::spawn(psql, log.clone()));
            load.logs.push(log);
        }
        wait_until("the writers to write", PATIENCE, || {
            load.promises().len() > 10
        });
        load
    }

    /// After the server has been killed: every promise it made.
    pub fn finish(mut self) -> Vec<Promise> {
        for process in &mut self.processes {
            process.wait(PATIENCE);
        }
        self.promises()
    }

    fn promises(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        for (writer, log) in (0..).zip(&self.logs) {
            let text = fs::read_to_string(log).unwrap();
            // The last line may be half written.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let words = whole.lines().filter_map(|line| line.split_once("promise "));
            promises.extend(words.map(|(_, rest)| {
                let (n, position) = rest.split_once(' ').expect("two words");
                Promise {
                    writer,
                    n: n.parse().unwrap(),
                    lsn: lsn(position),
                }
            }));
        }
        promises
    }
}

/// What came back: for each writer the rows 1 to its count, without a gap, each with its content.
pub struct Survivors([u32; WRITERS]);

impl Survivors {
    pub fn read(server: &Server) -> Survivors {
        let mut counts = [0; WRITERS];
        for row in server.sql(
            "select writer, count(*), max(n), \
            bool_and(body = repeat(md5(n::text), 30)) from promises group by writer",
        ) {
            let fields: Vec<&str> = row.split('|').collect();
            let [writer, count, last, intact] = fields[..] else {
                panic!("{row}")
            };
            assert_eq!(count, last, "writer {writer} has a gap");
            assert_eq!(intact, "t", "writer {writer} has a row with other content");
            counts[writer.parse::<usize>().unwrap()] = count.parse().unwrap();
        }
        Survivors(counts)
    }

    pub fn holds(&self, promise: &Promise) -> bool {
        promise.n <= self.0[promise.writer]
    }
}
