//! Who signed a request, by AWS's "Signature Version 4" as documented, from the received bytes.

use hmac::{Hmac, KeyInit, Mac};
use hyper::header::HeaderName;
use sha2::{Digest, Sha256};

use super::super::s3::REGION;
use super::{Login, Refusal};
use crate::support::http::Request;

/// How far clocks may differ, seconds.
const SKEW_S: i64 = 15 * 60;

/// A signature over everything that says what is to be done, and over the payload. Where sessions
/// come and go, their tokens are looked at elsewhere.
pub(super) fn check(request: &Request, logins: &[Login], sessions: bool) -> Result<(), Refusal> {
    let login = text(request, "authorization");
    let denied = |code: &'static str| Refusal { status: 403, code };
    let fields = login
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or(denied("AccessDenied"))?;
    let field = |name: &str| {
        let mut fields = fields.split(',').map(str::trim);
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let (Some(credential), Some(signed), Some(signature)) = (
        field("Credential"),
        field("SignedHeaders"),
        field("Signature"),
    ) else {
        return Err(denied("AuthorizationHeaderMalformed"));
    };
    let date = text(request, "x-amz-date");
    let day = date.get(..8).unwrap_or_default();
    let scope = format!("{day}/{REGION}/s3/aws4_request");
    let known = |login: &&Login| credential.split_once('/') == Some((&login.access, &scope));
    let login = logins.iter().find(known);
    let login = login.ok_or(denied("InvalidAccessKeyId"))?;
    let elsewhere = sessions && login.token.is_none();
    let token = login.token.clone().unwrap_or_default();
    if !elsewhere && token != text(request, "x-amz-security-token") {
        return Err(denied("InvalidToken"));
    }
    let made = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &date)
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC))
        .map_err(|_| denied("AccessDenied"))?;
    let age_s = jiff::Timestamp::now().as_second() - made.timestamp().as_second();
    if age_s.abs() > SKEW_S {
        return Err(denied("RequestTimeTooSkewed"));
    }
    let canonical = canonical(request, signed).ok_or(denied("AccessDenied"))?;
    let hash = hex::encode(Sha256::digest(canonical));
    let mut key = format!("AWS4{}", login.secret).into_bytes();
    for part in [day, REGION, "s3", "aws4_request"] {
        key = mac(&key, part);
    }
    let expected = mac(&key, &format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}"));
    if signature != hex::encode(expected) {
        return Err(denied("SignatureDoesNotMatch"));
    }
    payload(request)
}

/// `None` where a header that has to be signed is not.
fn canonical(request: &Request, signed: &str) -> Option<String> {
    let names: Vec<&str> = signed.split(';').collect();
    let must = |name: &HeaderName| name == "host" || name.as_str().starts_with("x-amz-");
    let all = request.headers().keys().filter(|name| must(name));
    if !all.into_iter().all(|name| names.contains(&name.as_str())) || !names.contains(&"host") {
        return None;
    }
    let mut query: Vec<String> = Vec::new();
    for pair in request.uri().query().unwrap_or_default().split('&') {
        match pair.contains('=') {
            _ if pair.is_empty() => {}
            true => query.push(pair.to_owned()),
            false => query.push(format!("{pair}=")),
        }
    }
    query.sort();
    let headers: String = names
        .iter()
        .map(|name| format!("{name}:{}\n", text(request, name).trim()))
        .collect();
    let (method, path) = (request.method(), request.uri().path());
    let (query, payload) = (query.join("&"), text(request, "x-amz-content-sha256"));
    Some(format!(
        "{method}\n{path}\n{query}\n{headers}\n{signed}\n{payload}"
    ))
}

fn payload(request: &Request) -> Result<(), Refusal> {
    let said = text(request, "x-amz-content-sha256");
    let bad = |code| Refusal { status: 400, code };
    match said.as_str() {
        // Streams in signed or checked chunks; none of our clients sends them.
        said if said.starts_with("STREAMING-") => Err(Refusal {
            status: 501,
            code: "NotImplemented",
        }),
        // Then something else has to vouch for it.
        "UNSIGNED-PAYLOAD" => {
            let vouched = ["x-amz-checksum-sha256", "content-md5"]
                .iter()
                .any(|name| request.headers().contains_key(*name));
            match vouched || request.body().is_empty() {
                true => Ok(()),
                false => Err(bad("InvalidRequest")),
            }
        }
        said if said == hex::encode(Sha256::digest(request.body())) => Ok(()),
        _ => Err(bad("XAmzContentSHA256Mismatch")),
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// As it came, as far as it is UTF-8.
pub(super) fn text(request: &Request, name: &str) -> String {
    let value = request.headers().get(name);
    let bytes = value.map_or(&b""[..], |value| value.as_bytes());
    String::from_utf8_lossy(bytes).into_owned()
}
