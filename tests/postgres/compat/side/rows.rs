//! The words, and where the two differ.

use super::Differs::{self, Code, Files, ToError, Words};

/// Reasons, as README's lines begin.
const ERROR: &str = "Errors go to standard error";
const WORDS: &str = "Help, usage and some messages";
const USAGE: &str = "`pghoard_postgres_command` sends";
const UNSURE: &str = "`pghoard_postgres_command --mode restore` exits with 255";
const PGDATA: &str = "`pg_data_directory` need not be set";
const SIGNAL: &str = "`recovery.signal` or `standby.signal`";
const GO: &str = "`pghoard_postgres_command_go` archives, too";
const TAR: &str = "`pghoard_gnutaremu` refuses";

/// Folders of servers before 10 come with every chunk 0.
const CHUNKED: &[&str] = &[
    "new/pg_log/",
    "new/pg_snapshot/",
    "new/pg_xlog/",
    "new/pg_xlog/archive_status/",
    "new/postgresql.auto.conf",
    "new/recovery.conf",
    "new/standby.signal",
];

/// One command line. `DIR` is a fresh folder with stores and configurations, `PORT` that of
/// whoever gives `reply`.
pub struct Row {
    pub words: &'static str,
    /// Status, headers, an empty line and the body.
    pub reply: Option<&'static str>,
    pub theirs: Theirs,
    pub differs: &'static [Differs],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Theirs {
    /// The release answers.
    Runs,
    /// It does not have it; the newer one would end with this code.
    Would(i32),
}

const fn row(words: &'static str, differs: &'static [Differs]) -> Row {
    Row {
        words,
        reply: None,
        theirs: Theirs::Runs,
        differs,
    }
}

const fn asked(reply: &'static str, words: &'static str, differs: &'static [Differs]) -> Row {
    Row {
        words,
        reply: Some(reply),
        theirs: Theirs::Runs,
        differs,
    }
}

const fn newer(words: &'static str, code: i32, differs: &'static [Differs]) -> Row {
    Row {
        theirs: Theirs::Would(code),
        ..row(words, differs)
    }
}

pub const ROWS: &[Row] = &[
    row("pghoard --version", &[]),
    row("pghoard --vers", &[]),
    row("pghoard --help", &[Words(WORDS)]),
    row("pghoard -h", &[Words(WORDS)]),
    row("pghoard", &[ToError(ERROR)]),
    row("pghoard --unknown", &[]),
    row("pghoard a b", &[]),
    row("pghoard -D -s", &[ToError(ERROR)]),
    row("pghoard DIR/absent.json", &[ToError(ERROR)]),
    row("pghoard --config DIR/absent.json", &[ToError(ERROR)]),
    row("pghoard --conf=DIR/absent.json", &[ToError(ERROR)]),
    row(
        "pghoard -s --config DIR/broken.json",
        &[ToError(ERROR), Words(WORDS)],
    ),
    row(
        "pghoard -s --config DIR/untyped.json",
        &[ToError(PGDATA), Words(PGDATA)],
    ),
    row(
        "pghoard -s --config DIR/same.json",
        &[ToError(PGDATA), Words(PGDATA)],
    ),
    row(
        "pghoard -s --config DIR/floppy.json",
        &[ToError(PGDATA), Words(PGDATA)],
    ),
    row(
        "pghoard -s --config DIR/bare.json",
        &[ToError(PGDATA), Words(PGDATA)],
    ),
    row("pghoard_restore", &[Words(WORDS)]),
    row("pghoard_restore --version", &[]),
    row("pghoard_restore --help", &[Words(WORDS)]),
    row("pghoard_restore -D", &[Words(WORDS)]),
    row("pghoard_restore unknown", &[]),
    row("pghoard_restore list-basebackups --help", &[Words(WORDS)]),
    row("pghoard_restore list-basebackups", &[]),
    row("pghoard_restore list-basebackups --config DIR/c.json", &[]),
    row(
        "pghoard_restore list-basebackups -v --config DIR/c.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --verbose --conf=DIR/chunks.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/history.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/two.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/two.json --site other",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/two.json --site third",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/c.json --site third",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/none.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/empty.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/absent.json",
        &[],
    ),
    row("pghoard_restore list-basebackups --config DIR", &[]),
    row(
        "pghoard_restore list-basebackups --config DIR/broken.json",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/same.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/floppy.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/untyped.json",
        &[],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/bare.json",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_restore list-basebackups --config DIR/c.json --unknown",
        &[],
    ),
    row("pghoard_restore get-basebackup --config DIR/c.json", &[]),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new",
        &[Files(
            &[
                "new/postgresql.auto.conf",
                "new/recovery.conf",
                "new/standby.signal",
            ],
            SIGNAL,
        )],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --restore-to-master",
        &[Files(
            &[
                "new/postgresql.auto.conf",
                "new/recovery.conf",
                "new/recovery.signal",
            ],
            SIGNAL,
        )],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/full",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/full --overwrite",
        &[Files(
            &[
                "full/postgresql.auto.conf",
                "full/recovery.conf",
                "full/standby.signal",
            ],
            SIGNAL,
        )],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --basebackup x",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --basebackup golden/basebackup/2026-11-22_09-27_0",
        &[Files(
            &[
                "new/postgresql.auto.conf",
                "new/recovery.conf",
                "new/standby.signal",
            ],
            SIGNAL,
        )],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/history.json --target-dir DIR/new",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --recovery-target-xid 7 --recovery-target-name x",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --recovery-target-time soon",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --recovery-target-time 2020-01-01",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --recovery-target-action sleep",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --tablespace-dir nonsense",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --tablespace-dir a=DIR/far",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/chunks.json --target-dir DIR/new",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/chunks.json --target-dir DIR/new \
         --tablespace-dir tsone=DIR/far",
        &[Files(CHUNKED, SIGNAL), Words(WORDS)],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/chunks.json --target-dir DIR/new \
         --tablespace-dir tsone=DIR/full",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/chunks.json --target-dir DIR/new \
         --tablespace-dir tsone=DIR/nowhere",
        &[],
    ),
    row(
        "pghoard_restore get-basebackup --config DIR/chunks.json --target-dir DIR/new \
         --tablespace-base-dir DIR/far",
        &[Files(CHUNKED, SIGNAL), Words(WORDS)],
    ),
    row("pghoard_restore list-basebackups-http", &[]),
    asked(
        "500 Oh",
        "pghoard_restore list-basebackups-http --site s --port PORT",
        &[Words(WORDS)],
    ),
    asked(
        LISTING,
        "pghoard_restore list-basebackups-http --site s --port PORT",
        &[],
    ),
    asked(
        LISTING,
        "pghoard_restore list-basebackups-http -v --site s --port PORT",
        &[],
    ),
    row("pghoard_archive_cleanup", &[ToError(ERROR)]),
    row("pghoard_archive_cleanup --version", &[]),
    row("pghoard_archive_cleanup --help", &[Words(WORDS)]),
    row("pghoard_archive_cleanup --unknown", &[]),
    row("pghoard_archive_cleanup --config DIR/absent.json", &[]),
    row("pghoard_archive_cleanup --config DIR/broken.json", &[]),
    row("pghoard_archive_cleanup --config DIR/two.json", &[]),
    row(
        "pghoard_archive_cleanup --config DIR/c.json --site third",
        &[],
    ),
    row("pghoard_archive_cleanup --config DIR/history.json", &[]),
    row("pghoard_archive_cleanup --config DIR/c.json", &[]),
    row(
        "pghoard_archive_cleanup --config DIR/orphans.json --dry-run",
        &[],
    ),
    row("pghoard_archive_cleanup --config DIR/orphans.json", &[]),
    row("pghoard_archive_sync", &[ToError(ERROR)]),
    row("pghoard_archive_sync --version", &[]),
    row("pghoard_archive_sync --help", &[Words(WORDS)]),
    row("pghoard_archive_sync --unknown", &[]),
    row("pghoard_archive_sync --config DIR/absent.json", &[]),
    row(
        "pghoard_archive_sync --config DIR/c.json --site golden",
        &[],
    ),
    row("pghoard_create_keys", &[]),
    row("pghoard_create_keys --version", &[]),
    row("pghoard_create_keys --help", &[Words(WORDS)]),
    row("pghoard_create_keys --key-id k", &[ToError(ERROR)]),
    row("pghoard_create_keys --key-id k --site s", &[]),
    row("pghoard_create_keys --key-id k --site s --bits 2048", &[]),
    row("pghoard_create_keys --key-id k --site s --bits many", &[]),
    row(
        "pghoard_create_keys --key-id k --config DIR/absent.json",
        &[ToError(ERROR)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/broken.json",
        &[ToError(ERROR), Words(WORDS)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/two.json",
        &[ToError(ERROR)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/none.json",
        &[ToError(ERROR)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/c.json --site third",
        &[ToError(ERROR)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/c.json",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_create_keys --key-id k --config DIR/bare.json -D",
        &[Words(WORDS)],
    ),
    row(
        "pghoard_create_keys --key-id goldenkey3072 --config DIR/c.json",
        &[ToError(ERROR)],
    ),
    row("pghoard_postgres_command", &[]),
    row("pghoard_postgres_command --version", &[Code(255, 0, USAGE)]),
    row(
        "pghoard_postgres_command --help",
        &[Code(255, 0, USAGE), Words(WORDS)],
    ),
    row(
        "pghoard_postgres_command --mode dance --site s --xlog x",
        &[],
    ),
    row(
        "pghoard_postgres_command --mode archive --site s",
        &[Code(255, 2, USAGE)],
    ),
    row(
        "pghoard_postgres_command --mode archive --site s --xlog x --port y",
        &[Code(255, 2, USAGE)],
    ),
    row(
        "pghoard_postgres_command --mode archive --site s --xlog a.00000028.backup",
        &[],
    ),
    row(
        "pghoard_postgres_command --mode archive --site s --xlog x --port PORT",
        &[],
    ),
    row(
        "pghoard_postgres_command --mode restore --site s --xlog x --port PORT",
        &[ToError(ERROR), Words(WORDS)],
    ),
    asked("201 Created", ARCHIVE, &[]),
    asked("404 Not Found\r\n\r\nN/A", ARCHIVE, &[ToError(ERROR)]),
    asked(
        "412 Precondition Failed\r\n\r\nno",
        ARCHIVE,
        &[ToError(ERROR)],
    ),
    asked("500 TIMEOUT\r\n\r\nTIMEOUT", ARCHIVE, &[ToError(ERROR)]),
    asked("503 Busy", ARCHIVE, &[ToError(ERROR)]),
    asked("200 OK", HEAD, &[]),
    asked("201 Created", HEAD, &[ToError(ERROR)]),
    asked(
        "404 Not Found",
        HEAD,
        &[Code(4, 255, UNSURE), ToError(ERROR), Words(WORDS)],
    ),
    asked(
        "404 Not Found\r\nx-pghoard-absent: true",
        HEAD,
        &[ToError(ERROR)],
    ),
    asked("500 Oh", HEAD, &[ToError(ERROR)]),
    asked("200 OK", RESTORE, &[ToError(ERROR)]),
    asked("201 Created", RESTORE, &[Code(0, 255, UNSURE)]),
    asked(
        "404 Not Found",
        RESTORE,
        &[Code(4, 255, UNSURE), ToError(ERROR), Words(WORDS)],
    ),
    asked(
        "404 Not Found\r\nx-pghoard-absent: true",
        RESTORE,
        &[ToError(ERROR)],
    ),
    asked(
        "500 TIMEOUT\r\n\r\nTIMEOUT",
        RESTORE,
        &[ToError(ERROR), Words(WORDS)],
    ),
    asked("401 Unauthorized", RESTORE, &[ToError(ERROR)]),
    row("pghoard_gnutaremu", &[]),
    row("pghoard_gnutaremu --help", &[Words(WORDS)]),
    row("pghoard_gnutaremu -f DIR/a.tar", &[]),
    row("pghoard_gnutaremu -xf DIR/absent.tar", &[]),
    row("pghoard_gnutaremu -xf DIR/c.json -C DIR/far", &[]),
    row("pghoard_gnutaremu -xf DIR/a.tar -C DIR/far", &[]),
    row(
        "pghoard_gnutaremu -x --file=DIR/a.tar --directory DIR/far",
        &[],
    ),
    row(
        "pghoard_gnutaremu -xf DIR/a.tar -C DIR/far --exclude skip --exclude PG_*",
        &[],
    ),
    row(
        "pghoard_gnutaremu -xf DIR/a.tar -C DIR/far --transform s,^pgdata/,,",
        &[Files(&["far/pgdata/"], TAR)],
    ),
    row(
        "pghoard_gnutaremu -P -xf DIR/a.tar -C DIR/far --transform s,^pgdata/,, \
         --transform s,^tablespaces/t/\\(.*\\)$,DIR/full/\\1,",
        &[Files(&["far/pgdata/", "far/tablespaces/t/"], TAR)],
    ),
    row(
        "pghoard_gnutaremu -xf DIR/a.tar -C DIR/far --transform s|p(gd)|x|",
        &[],
    ),
    row(
        "pghoard_gnutaremu -xf DIR/a.tar -C DIR/far --transform nonsense",
        &[Code(1, 2, TAR)],
    ),
    newer(
        "pghoard_restore list-basebackups-http --username u --site s --port 1",
        1,
        &[],
    ),
    newer(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --restore-to-primary --preserve-until 2030-01-01",
        0,
        &[],
    ),
    newer(
        "pghoard_restore get-basebackup --config DIR/c.json --target-dir DIR/new \
         --preserve-until soon",
        1,
        &[],
    ),
    newer(
        "pghoard_gnutaremu --keep-directory-symlink -xf DIR/a.tar -C DIR/far",
        0,
        &[],
    ),
    newer(
        "pghoard_postgres_command --mode archive --username u --password p --site s --xlog x \
         --port 1",
        2,
        &[],
    ),
    newer("pghoard_postgres_command_go -version", 0, &[]),
    newer("pghoard_postgres_command_go --version", 0, &[]),
    newer(
        "pghoard_postgres_command_go -site s -mode restore",
        5,
        &[Code(5, 255, UNSURE)],
    ),
    newer(
        "pghoard_postgres_command_go -site s -xlog x -mode dance",
        5,
        &[Code(5, 255, UNSURE)],
    ),
    newer(
        "pghoard_postgres_command_go -site s -xlog x.backup -mode archive",
        5,
        &[Code(5, 0, GO)],
    ),
    newer(
        "pghoard_postgres_command_go -retry-interval 0 -port 1 -site s -xlog x -mode=restore",
        5,
        &[Code(5, 255, UNSURE)],
    ),
];

const ARCHIVE: &str = "pghoard_postgres_command --mode archive --site s --port PORT \
                       --xlog 000000010000000000000001";
const HEAD: &str = "pghoard_postgres_command --mode restore --site s --port PORT \
                    --xlog 000000010000000000000001";
const RESTORE: &str = "pghoard_postgres_command --mode restore --site s --port PORT \
                       --xlog 000000010000000000000001 --output DIR/out";
const LISTING: &str = "200 OK\r\n\r\n{\"basebackups\": [{\
                       \"name\": \"s/basebackup/2026-11-22_09-27_0\", \
                       \"size\": 7340032, \"last_modified\": \"2026-11-22T09:27:26Z\", \
                       \"metadata\": {\"start-time\": \"2026-11-22T10:27:26+01:00\", \
                       \"original-file-size\": \"44040192\", \"pg-version\": \"150018\"}}]}";
