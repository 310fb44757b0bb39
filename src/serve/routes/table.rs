//! The one table of the API: what is dispatched, refused and documented.
//!
//! Words and codes are PGHoard's where a client of PGHoard's may know them. Every request may also
//! be answered by [`ALWAYS`].

/// A method of a path.
#[derive(Debug)]
pub struct Route {
    pub method: &'static str,
    /// With `{site}`, `{name}` and `{file}` for what differs.
    pub path: &'static str,
    pub act: Act,
    pub about: &'static str,
    pub takes: Takes,
    pub parameters: &'static [Parameter],
    pub answers: &'static [Reply],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Status,
    SiteStatus,
    Power,
    Update,
    Files,
    File,
    Log,
    Metrics,
    Document,
    List,
    Request,
    Tar,
    Script,
    Offer,
    HandOver,
    Handouts,
    Hold,
    Release,
    Acknowledge,
    NoteAlert,
    Operate,
    Fetch,
    Find,
    Archive,
}

impl Act {
    /// Answered from memory, whatever else is going on.
    pub fn is_light(self) -> bool {
        matches!(
            self,
            Act::Status
                | Act::SiteStatus
                | Act::Metrics
                | Act::Document
                | Act::Script
                | Act::Handouts
        )
    }
}

/// What the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    /// An object with these texts; the ones with a `?` may be left out.
    Json(&'static [&'static str]),
    /// A file of `pg_wal`, or nothing.
    File,
    /// An update of the appliance.
    Bundle,
}

#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub place: Place,
    pub about: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Query,
    Header,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub kind: Kind,
    pub about: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Html,
    Json,
    Bytes,
    Metrics,
    Script,
    Tar,
}

impl Kind {
    pub fn content_type(self) -> &'static str {
        match self {
            Kind::Text => "text/plain",
            Kind::Html => "text/html",
            Kind::Json => "application/json",
            Kind::Bytes => "application/octet-stream",
            Kind::Metrics => crate::publish::metrics::exposition::CONTENT_TYPE,
            Kind::Script => "text/x-shellscript",
            Kind::Tar => "application/x-tar",
        }
    }
}

const fn reply(status: u16, kind: Kind, about: &'static str) -> Reply {
    Reply {
        status,
        kind,
        about,
    }
}

const fn query(name: &'static str, about: &'static str) -> Parameter {
    Parameter {
        name,
        place: Place::Query,
        about,
    }
}

const fn header(name: &'static str, about: &'static str) -> Parameter {
    Parameter {
        name,
        place: Place::Header,
        about,
    }
}

/// What any request may be answered.
pub const ALWAYS: &[Reply] = &[
    reply(
        400,
        Kind::Text,
        "the request has no meaning; the text says why",
    ),
    reply(
        401,
        Kind::Html,
        "name and password are set, and these are not they; of a token as text",
    ),
    reply(403, Kind::Text, "the token is for something else"),
    reply(404, Kind::Text, "there is no such site"),
    reply(
        413,
        Kind::Text,
        "the body is larger than any that this path takes",
    ),
    reply(
        503,
        Kind::Text,
        "cannot say or do it now; the text says why; ask again",
    ),
];

const ABSENT: Reply = reply(
    404,
    Kind::Text,
    "with x-pghoard-absent: true, and only then, it is confirmed to be nowhere",
);
const HELD: &[Reply] = &[
    reply(
        201,
        Kind::Json,
        "done; the objects in the store that say so",
    ),
    reply(
        404,
        Kind::Text,
        "there is no such basebackup, or it is not held",
    ),
];
const APPLIANCE: &[Reply] = &[
    reply(200, Kind::Json, "what process 1 answers"),
    reply(409, Kind::Text, "it refuses, and why"),
    reply(501, Kind::Text, "this daemon does not run on an appliance"),
];
const SCRIPTED: &[Parameter] = &[
    query(
        "url",
        "where the script asks, as https://HOST:PORT; by default as this request",
    ),
    query(
        "netrc",
        "file with name and password, in the form of netrc; by default ~/.netrc",
    ),
    query(
        "cacert",
        "PEM file of who signed the certificate; by default whom curl trusts",
    ),
];
const TARRED: &[Parameter] = &[
    query("time", "recover to a time, UTC unless it says otherwise"),
    query("lsn", "recover to a position in the WAL, as 16/B374D848"),
    query("name", "recover to a named restore point"),
    query("xid", "recover to a transaction"),
    query(
        "immediate",
        "1: recover only until the backup is consistent",
    ),
    query("action", "at the target: pause, promote or shutdown"),
    query(
        "timeline",
        "timeline to follow: latest, current or a number",
    ),
    query("role", "primary (by default) or standby"),
    query(
        "tablespace",
        "NAME=/DIRECTORY for each tablespace; tar -x then needs -P",
    ),
    query(
        "url",
        "where WAL is fetched, as https://HOST:PORT; by default as this request",
    ),
    query(
        "netrc",
        "file with name and password for that, as netrc; by default ~/.netrc",
    ),
    query(
        "cacert",
        "PEM file of who signed the certificate; by default whom curl trusts",
    ),
];

pub const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/status",
        act: Act::Status,
        about: "the state document, as the state file",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(200, Kind::Bytes, "the state document, JSON")],
    },
    Route {
        method: "GET",
        path: "/metrics",
        act: Act::Metrics,
        about: "metrics for Prometheus",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[
            reply(200, Kind::Metrics, "Prometheus' text"),
            reply(501, Kind::Text, "prometheus is not configured"),
            reply(503, Kind::Text, "nothing has been counted yet: ask again"),
        ],
    },
    Route {
        method: "GET",
        path: "/openapi.json",
        act: Act::Document,
        about: "this document",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(200, Kind::Json, "OpenAPI 3")],
    },
    Route {
        method: "GET",
        path: "/files",
        act: Act::Files,
        about: "the state file and the alert files that are there",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(200, Kind::Json, "names and sizes")],
    },
    Route {
        method: "GET",
        path: "/files/{name}",
        act: Act::File,
        about: "one of them as it is",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[
            reply(200, Kind::Bytes, "its content"),
            reply(404, Kind::Text, "there is no such file"),
        ],
    },
    Route {
        method: "GET",
        path: "/log",
        act: Act::Log,
        about: "the end of this machine's log",
        takes: Takes::Nothing,
        parameters: &[query("lines", "so many, 200 by default, at most 10000")],
        answers: &[
            reply(200, Kind::Text, "whole lines, the oldest first"),
            reply(501, Kind::Text, "the log is not kept in files here"),
        ],
    },
    Route {
        method: "PUT",
        path: "/appliance/power",
        act: Act::Power,
        about: "reboot or poweroff, of the appliance",
        takes: Takes::Json(&["how", "by?"]),
        parameters: &[],
        answers: APPLIANCE,
    },
    Route {
        method: "PUT",
        path: "/appliance/update",
        act: Act::Update,
        about: "an update of the appliance, as it was signed",
        takes: Takes::Bundle,
        parameters: &[header("x-pghoard-by", "who brings it")],
        answers: APPLIANCE,
    },
    Route {
        method: "PUT",
        path: "/operator",
        act: Act::Operate,
        about: "keep in the log what a person did, and who",
        takes: Takes::Json(&["who", "command", "detail?"]),
        parameters: &[],
        answers: &[reply(201, Kind::Json, "it is in the log")],
    },
    Route {
        method: "PUT",
        path: "/alerts/acknowledge",
        act: Act::NoteAlert,
        about: "take note of an alert, as by removing its file",
        takes: Takes::Json(&["alert", "by?", "reason?"]),
        parameters: &[],
        answers: &[
            reply(201, Kind::Json, "noted in the log"),
            reply(404, Kind::Text, "no such alert stands"),
        ],
    },
    Route {
        method: "GET",
        path: "/{site}/status",
        act: Act::SiteStatus,
        about: "PGHoard knows the path and has no answer either",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(501, Kind::Text, "see /status")],
    },
    Route {
        method: "GET",
        path: "/{site}/basebackup",
        act: Act::List,
        about: "the basebackups in the store",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(200, Kind::Json, "names, sizes and metadata")],
    },
    Route {
        method: "PUT",
        path: "/{site}/basebackup",
        act: Act::Request,
        about: "ask for a basebackup; /{site}/archive/basebackup does the same",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[
            reply(201, Kind::Bytes, "one will be taken"),
            reply(409, Kind::Text, "the site is inactive"),
        ],
    },
    Route {
        method: "GET",
        path: "/{site}/basebackup/{name}/tar",
        act: Act::Tar,
        about: "the data directory as one tar, with the settings of recovery; latest for the name \
                is the one that fits the target",
        takes: Takes::Nothing,
        parameters: TARRED,
        answers: &[
            reply(
                200,
                Kind::Tar,
                "the tar; one that breaks off does not start",
            ),
            reply(404, Kind::Text, "no basebackup fits"),
            reply(
                409,
                Kind::Text,
                "it cannot come to that target, or a tablespace has no place",
            ),
            reply(505, Kind::Text, "only HTTP/1.1 tells the end from a break"),
        ],
    },
    Route {
        method: "GET",
        path: "/{site}/restore-command",
        act: Act::Script,
        about: "a shell script for restore_command = 'sh FILE %f %p', which needs curl alone",
        takes: Takes::Nothing,
        parameters: SCRIPTED,
        answers: &[reply(200, Kind::Script, "the script")],
    },
    Route {
        method: "PUT",
        path: "/{site}/handout",
        act: Act::Offer,
        about: "a token, and a line for a shell, that opens one restore for a host without a login",
        takes: Takes::Json(&[
            "backup?",
            "time?",
            "lsn?",
            "name?",
            "xid?",
            "immediate?",
            "action?",
            "timeline?",
            "role?",
            "tablespaces?",
            "url?",
            "cacert?",
            "minutes?",
            "by?",
        ]),
        parameters: &[],
        answers: &[
            reply(201, Kind::Json, "the token, what it opens and until when"),
            reply(404, Kind::Text, "no basebackup fits"),
            reply(
                409,
                Kind::Text,
                "it cannot come to that target, or a tablespace has no place",
            ),
        ],
    },
    Route {
        method: "GET",
        path: "/{site}/handout/tar",
        act: Act::HandOver,
        about: "the data directory as one tar, once, for the token of a hand-out",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[
            reply(
                200,
                Kind::Tar,
                "the tar; one that breaks off does not start",
            ),
            reply(404, Kind::Text, "the basebackup is gone"),
            reply(409, Kind::Text, "it cannot come to that target any more"),
            reply(410, Kind::Text, "the token has opened its tar before"),
            reply(505, Kind::Text, "only HTTP/1.1 tells the end from a break"),
        ],
    },
    Route {
        method: "GET",
        path: "/handouts",
        act: Act::Handouts,
        about: "the hand-outs that are live, and how far each came",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[reply(200, Kind::Json, "bytes, WAL and states")],
    },
    Route {
        method: "PUT",
        path: "/{site}/hold",
        act: Act::Hold,
        about: "a basebackup that must not go",
        takes: Takes::Json(&["backup", "reason", "by?", "until?"]),
        parameters: &[],
        answers: HELD,
    },
    Route {
        method: "PUT",
        path: "/{site}/release",
        act: Act::Release,
        about: "it may go again",
        takes: Takes::Json(&["backup"]),
        parameters: &[],
        answers: HELD,
    },
    Route {
        method: "DELETE",
        path: "/{site}/release",
        act: Act::Release,
        about: "it may go again",
        takes: Takes::Json(&["backup"]),
        parameters: &[],
        answers: HELD,
    },
    Route {
        method: "PUT",
        path: "/{site}/holes/acknowledge",
        act: Act::Acknowledge,
        about: "take note of a hole, or of all with \"all\": true instead of its name",
        takes: Takes::Json(&["hole?", "all?", "reason", "by?"]),
        parameters: &[],
        answers: &[
            reply(201, Kind::Json, "noted in the store"),
            reply(404, Kind::Text, "no such hole is open"),
        ],
    },
    Route {
        method: "GET",
        path: "/{site}/archive/{file}",
        act: Act::Fetch,
        about: "a WAL segment or a history file; xlog or timeline may stand for archive",
        takes: Takes::Nothing,
        parameters: &[
            header("x-pghoard-body", "1: the file is the body of the answer"),
            header("x-pghoard-system-id", "of the cluster that recovers"),
            header("x-pghoard-target-path", "else where the daemon writes it"),
        ],
        answers: &[
            reply(200, Kind::Bytes, "the file"),
            reply(201, Kind::Bytes, "it was written to the path"),
            ABSENT,
            reply(409, Kind::Text, "the directory of the path does not exist"),
        ],
    },
    Route {
        method: "HEAD",
        path: "/{site}/archive/{file}",
        act: Act::Find,
        about: "whether it is there",
        takes: Takes::Nothing,
        parameters: &[],
        answers: &[
            reply(
                200,
                Kind::Bytes,
                "it is; metadata-hash and metadata-hash-algorithm",
            ),
            ABSENT,
        ],
    },
    Route {
        method: "PUT",
        path: "/{site}/archive/{file}",
        act: Act::Archive,
        about: "archive a file of pg_wal, or with a body that",
        takes: Takes::File,
        parameters: &[],
        answers: &[
            reply(201, Kind::Bytes, "it is safe, in the sense of ack"),
            reply(404, Kind::Text, "there is no such file in pg_wal"),
            reply(
                409,
                Kind::Text,
                "archived already with other content; both are kept",
            ),
            reply(412, Kind::Text, "it is not what its name says"),
            reply(500, Kind::Text, "TIMEOUT: not safe yet, ask again"),
        ],
    },
];
