//! What the answers of stores mean: status and code to a class, once for all of them.
//!
//! Codes: AWS "Error responses", Azure "Blob service error codes", Google's JSON errors; Ceph and
//! others use AWS's.

use std::error::Error;

use machine::Class;
use object_store::client::{HttpError, HttpErrorKind};

use crate::failure::Failure;

/// An answer that is no success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    status: u16,
    code: String,
    message: String,
}

impl Fault {
    pub fn read(status: u16, text: &str) -> Fault {
        let (code, message) = xml(text).or_else(|| json(text)).unwrap_or_default();
        Fault {
            status,
            code,
            message,
        }
    }

    /// The error in an answer that says it is a success; what is no listing is one, too.
    pub fn within(status: u16, text: &str, list: bool) -> Option<Fault> {
        let root = root_element(text);
        let odd = |message: &str| Fault {
            status,
            code: NOT_A_LISTING.to_owned(),
            message: message.to_owned(),
        };
        match (root, list) {
            ("Error", _) => Some(Fault::read(status, text)),
            ("ListBucketResult" | "EnumerationResults", true) => {
                let cut = text.contains("<IsTruncated>true</IsTruncated>")
                    && !text.contains("<NextContinuationToken>");
                cut.then(|| odd("the listing goes on, and does not say where"))
            }
            (_, true) => Some(odd("the answer is no listing")),
            (_, false) => None,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn again(&self) -> bool {
        match self.class() {
            Class::Network | Class::Timeout => true,
            Class::Quota => {
                !FULL.contains(&self.code.as_str()) && ![413, 507].contains(&self.status)
            }
            // What was damaged on its way may arrive whole the next time.
            Class::Corrupt => true,
            _ => self.code == "OperationAborted",
        }
    }

    fn class(&self) -> Class {
        let known = CODES
            .iter()
            .find(|(_, codes)| codes.contains(&self.code.as_str()));
        if let Some((class, _)) = known {
            return *class;
        }
        match self.status {
            301 | 307 | 308 | 400 => Class::Config,
            401 | 407 => Class::Auth,
            403 | 451 => Class::Denied,
            404 | 410 => Class::NotFound,
            405 | 501 => Class::Unsupported,
            408 | 504 => Class::Timeout,
            409 | 412 => Class::Conflict,
            416 => Class::Internal,
            // Swift: over a quota, an ETag that is not the body's, too many requests.
            413 => Class::Quota,
            422 => Class::Corrupt,
            429 | 498 | 503 | 507 | 509 => Class::Quota,
            500.. => Class::Network,
            _ => Class::Unsupported,
        }
    }

    /// `skew_seconds`: how far our clock is ahead of the server's. `proxied`: a proxy may be who
    /// answers.
    pub fn failure(&self, what: &str, skew_seconds: Option<i64>, proxied: bool) -> Failure {
        let Fault { status, code, .. } = self;
        let message = match (self.code.as_str(), self.message.as_str()) {
            ("", "") => format!("{what}: {status}"),
            ("", message) => format!("{what}: {status}, {message}"),
            (code, "") => format!("{what}: {status} {code}"),
            (code, message) => format!("{what}: {status} {code}, {message}"),
        };
        let failure = Failure::new(self.class(), message);
        let skewed = SKEWED.contains(&code.as_str());
        match skew_seconds.filter(|seconds| skewed || seconds.abs() >= SKEW_SECONDS_MAX) {
            Some(seconds) if failure.class == Class::Auth || skewed => {
                let side = if seconds < 0 { "behind" } else { "ahead of" };
                let by = seconds.abs();
                failure.hint(format!(
                    "this machine's clock is {by} s {side} the store's: set it"
                ))
            }
            _ => match hint(code, *status) {
                Some(hint) => failure.hint(hint),
                // Some say 401 where they mean 407.
                None if proxied && (code.as_str(), *status) == ("", 401) => {
                    failure.hint(PROXY_HINT)
                }
                None => failure,
            },
        }
    }
}

fn hint(code: &str, status: u16) -> Option<&'static str> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => "make it, or correct its name",
        "AuthorizationHeaderMalformed" | "PermanentRedirect" => "is the region right?",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => "are key and secret right?",
        "ExpiredToken" | "InvalidToken" => "the temporary credentials need to be renewed",
        code if SKEWED.contains(&code) => "this machine's clock and the store's differ: set it",
        _ if status == 407 => PROXY_HINT,
        _ if matches!(status, 301 | 307 | 308) => "is the region right?",
        _ => return None,
    })
}

/// Of a request that got no answer.
pub(super) fn transport(error: &HttpError, what: &str) -> Failure {
    if let Some(failure) = failure(error) {
        return failure.about(what);
    }
    let class = match error.kind() {
        HttpErrorKind::Timeout => Class::Timeout,
        HttpErrorKind::Decode => Class::Corrupt,
        _ => Class::Network,
    };
    let why = root(error);
    let failure = Failure::new(class, format!("{what}: {why}"));
    if let Some(says) = PROXY.iter().find(|says| why.contains(*says)) {
        let message = format!("{what}: the proxy wants another login: {says}");
        return Failure::new(Class::Auth, message).hint(PROXY_HINT);
    }
    if why.contains("tunnel error") {
        return failure.hint(PROXY_HINT);
    }
    match why.contains("certificate") {
        // Nothing is gained by trying again.
        true => Failure {
            class: Class::Config,
            ..failure
        }
        .hint("name who signed the server's certificate in cert_path"),
        false => failure,
    }
}

/// The failure that an error wraps, wherever in the chain of causes.
pub fn failure(error: &(dyn Error + 'static)) -> Option<Failure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return Some(failure.clone());
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && let Some(failure) = Failure::within(error)
        {
            return Some(failure);
        }
        next = error.source();
    }
    None
}

/// Of a body that broke off: the failure it wraps, else that of the connection.
pub fn broken(error: &(dyn Error + 'static)) -> Failure {
    failure(error).unwrap_or_else(|| Failure::new(Class::Network, root(error)))
}

/// The innermost cause, which names no URL.
pub fn root(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn xml(text: &str) -> Option<(String, String)> {
    let code = between(text, "Code")?;
    let message = between(text, "Message").unwrap_or_default();
    // Azure's has lines on when and which request it was.
    let message = message.lines().next().unwrap_or_default().to_owned();
    Some((code, message))
}

fn json(text: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let word = |value: Option<&serde_json::Value>| {
        let text = value.and_then(serde_json::Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    // So do AWS's agents.
    if let Some(code) = value.get("code").or_else(|| value.get("Code")) {
        let message = value.get("message").or_else(|| value.get("Message"));
        return Some((word(Some(code)), word(message)));
    }
    let error = value.get("error")?;
    // OAuth's errors are texts, an API's are objects.
    if error.is_string() {
        return Some((word(Some(error)), word(value.get("error_description"))));
    }
    let reason = error.pointer("/errors/0/reason").or(error.get("status"));
    Some((word(reason), word(error.get("message"))))
}

/// The class of the first code that a text names, one that the library made of an answer.
pub fn class_within(text: &str) -> Option<Class> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '.';
    let known = |word: &str| {
        let mut all = CODES.iter();
        all.find(|(_, codes)| codes.contains(&word))
    };
    text.split(word).find_map(known).map(|(class, _)| *class)
}

/// The text of the first element of a name.
pub fn between(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(unescaped(inner))
}

fn unescaped(text: &str) -> String {
    let plain = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
    ];
    let text = plain
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    text.replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

/// The name of the outermost element.
fn root_element(text: &str) -> &str {
    let mut rest = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    while let Some(inner) = rest.strip_prefix("<?").or(rest.strip_prefix("<!")) {
        let end = inner.split_once('>').map_or("", |(_, after)| after);
        rest = end.trim_start();
    }
    let name = rest.strip_prefix('<').unwrap_or_default();
    name.split(['>', ' ', '/', '\r', '\n'])
        .next()
        .unwrap_or_default()
}

/// What the library says of a proxy that does not let us in.
const PROXY: &[&str] = &[
    "proxy authorization required",
    "credentials not accepted",
    "does not support user/pass authentication",
    "implements authentication incorrectly",
];
const PROXY_HINT: &str = "if it is the proxy that refuses: are user and pass in proxy_info right?";
const SKEWED: &[&str] = &["RequestTimeTooSkewed", "RequestExpired"];
/// AWS allows 15 minutes; a good half of that is no accident.
const SKEW_SECONDS_MAX: i64 = 600;
const NOT_A_LISTING: &str = "NotAListing";
/// Waiting does not help.
const FULL: &[&str] = &[
    "QuotaExceeded",
    "XMinioStorageFull",
    "InsufficientCapacity",
    "AccountLimitExceeded",
];

const CODES: &[(Class, &[&str])] = &[
    (
        Class::Auth,
        &[
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidToken",
            "InvalidIdentityToken",
            "IDPRejectedClaim",
            "TokenRefreshRequired",
            "RequestTimeTooSkewed",
            "RequestExpired",
            "InvalidSecurity",
            "AuthFailure",
            "AuthenticationFailed",
            "NoAuthenticationInformation",
            "InvalidAuthenticationInfo",
            "authError",
            "invalid_grant",
            "invalid_client",
            "invalid_target",
            "unauthorized_client",
        ],
    ),
    (
        Class::Denied,
        &[
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "BlobImmutableDueToPolicy",
            "BlobImmutableDueToLegalHold",
            "AuthorizationFailure",
            "AuthorizationPermissionMismatch",
            "InsufficientAccountPermissions",
            "ObjectLocked",
            "retentionPolicyNotMet",
            "objectUnderActiveHold",
            "forbidden",
        ],
    ),
    (
        Class::Config,
        &[
            "NoSuchBucket",
            "InvalidBucketName",
            "ContainerNotFound",
            "PermanentRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "InvalidStorageClass",
            "KMS.NotFoundException",
            "KMS.DisabledException",
            "KMS.KMSInvalidStateException",
            "InvalidRequest",
        ],
    ),
    (
        Class::Quota,
        &[
            "SlowDown",
            "ServiceUnavailable",
            "Throttling",
            "ThrottlingException",
            "RequestLimitExceeded",
            "TooManyRequests",
            "ServerBusy",
            "QuotaExceeded",
            "XMinioStorageFull",
            "InsufficientCapacity",
            "AccountLimitExceeded",
            "rateLimitExceeded",
            "userRateLimitExceeded",
        ],
    ),
    (Class::Timeout, &["RequestTimeout", "OperationTimedOut"]),
    (
        Class::Network,
        &[
            "InternalError",
            "IncompleteBody",
            "backendError",
            "IDPCommunicationError",
        ],
    ),
    (
        Class::Corrupt,
        &[
            "BadDigest",
            "InvalidDigest",
            "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
            "ChecksumMismatch",
            "Md5Mismatch",
            "Crc64Mismatch",
            NOT_A_LISTING,
        ],
    ),
    (
        Class::Conflict,
        &[
            "PreconditionFailed",
            "ConditionalRequestConflict",
            "BlobAlreadyExists",
            "conditionNotMet",
        ],
    ),
    (
        Class::NotFound,
        &["NoSuchKey", "NoSuchUpload", "BlobNotFound"],
    ),
    (Class::Unsupported, &["NotImplemented", "MethodNotAllowed"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>a &amp; \
             b</Message></Error>"
        )
    }

    fn google(reason: &str) -> String {
        format!(r#"{{"error": {{"errors": [{{"reason": "{reason}"}}], "message": "m"}}}}"#)
    }

    fn agent(code: &str) -> String {
        format!(r#"{{"code": "{code}", "message": "m"}}"#)
    }

    /// By each of them, and by who hands out credentials.
    #[test]
    fn what_may_pass_by_itself_is_known() {
        let none = String::new;
        for (status, text, class, again) in [
            (429, none(), Class::Quota, true),
            (408, none(), Class::Timeout, true),
            (504, none(), Class::Timeout, true),
            (503, none(), Class::Quota, true),
            (503, s3("ServiceUnavailable"), Class::Quota, true),
            (409, s3("OperationAborted"), Class::Conflict, true),
            (503, s3("ServerBusy"), Class::Quota, true),
            (500, s3("OperationTimedOut"), Class::Timeout, true),
            (400, s3("Md5Mismatch"), Class::Corrupt, true),
            (403, google("rateLimitExceeded"), Class::Quota, true),
            (403, google("userRateLimitExceeded"), Class::Quota, true),
            (503, google("backendError"), Class::Network, true),
            (422, none(), Class::Corrupt, true),
            (498, none(), Class::Quota, true),
            (400, s3("ExpiredTokenException"), Class::Auth, false),
            (400, s3("InvalidIdentityToken"), Class::Auth, false),
            (400, s3("IDPCommunicationError"), Class::Network, true),
            (404, agent("NoSuchRole"), Class::NotFound, false),
            (500, agent("InternalServerException"), Class::Network, true),
        ] {
            let fault = Fault::read(status, &text);
            let found = (fault.class(), fault.again());
            assert_eq!(found, (class, again), "{status} {text}");
        }
    }

    #[test]
    fn every_answer_has_its_class() {
        for (status, text, class, again) in [
            (403, s3("InvalidAccessKeyId"), Class::Auth, false),
            (403, s3("AccessDenied"), Class::Denied, false),
            (403, s3("QuotaExceeded"), Class::Quota, false),
            (404, s3("NoSuchKey"), Class::NotFound, false),
            (404, s3("NoSuchBucket"), Class::Config, false),
            (404, String::new(), Class::NotFound, false),
            (409, String::new(), Class::Conflict, false),
            (412, s3("PreconditionFailed"), Class::Conflict, false),
            (400, s3("BadDigest"), Class::Corrupt, true),
            (400, s3("RequestTimeout"), Class::Timeout, true),
            (500, s3("InternalError"), Class::Network, true),
            (502, "<html>".to_owned(), Class::Network, true),
            (503, s3("SlowDown"), Class::Quota, true),
            (507, String::new(), Class::Quota, false),
            (
                403,
                r#"{"error": {"code": 403, "message": "m", "errors": [{"reason": "forbidden"}]}}"#
                    .to_owned(),
                Class::Denied,
                false,
            ),
            (
                400,
                r#"{"error": "invalid_grant", "error_description": "m"}"#.to_owned(),
                Class::Auth,
                false,
            ),
        ] {
            let fault = Fault::read(status, &text);
            assert_eq!(
                (fault.class(), fault.again()),
                (class, again),
                "{status} {text}"
            );
        }
        let told = Fault::read(404, &s3("NoSuchBucket")).failure("GET h/b", None, false);
        assert_eq!(
            told.to_string(),
            "GET h/b: 404 NoSuchBucket, a & b; hint: make it, or correct its name"
        );
    }

    #[test]
    fn a_clock_that_is_wrong_is_named() {
        let text = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
        let told = Fault::read(403, text).failure("GET h/b", Some(-3_600), false);
        assert_eq!(told.class, Class::Auth);
        let hint = told.hint.unwrap();
        assert_eq!(
            hint,
            "this machine's clock is 3600 s behind the store's: set it"
        );
    }

    /// S-19.
    #[test]
    fn an_error_inside_a_success_is_one_and_a_page_is_no_empty_listing() {
        let text = "<?xml version=\"1.0\"?>\n\n<Error><Code>InternalError</Code></Error>";
        let fault = Fault::within(200, text, false).unwrap();
        assert!(fault.again() && fault.class() == Class::Network);
        assert!(Fault::within(200, text, true).is_some());
        let good = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"></ListBucketResult>";
        assert_eq!(Fault::within(200, good, true), None);
        let cut = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
        for text in ["", "<!DOCTYPE html>\n<html></html>", "{}", cut] {
            let fault = Fault::within(200, text, true).unwrap();
            assert_eq!(fault.class(), Class::Corrupt, "{text}");
        }
        assert_eq!(
            Fault::within(200, "<DeleteResult><Error></Error></DeleteResult>", false),
            None
        );
    }
}
