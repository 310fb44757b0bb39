//! Requests of our own: what the library has none for.

use hyper::Method;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use machine::Class;
use object_store::client::{HttpRequest, HttpRequestBody};

use crate::failure::{Failure, Outcome};
use crate::store::wire::{Wire, Words, fault};

pub(in crate::store) fn request(
    method: Method,
    url: &str,
    headers: HeaderMap,
    body: HttpRequestBody,
) -> Outcome<HttpRequest> {
    let length = body.content_length();
    let request = hyper::Request::builder().method(method).uri(url);
    let request = request.body(body);
    let mut request: HttpRequest =
        request.map_err(|e| Failure::new(Class::Internal, format!("request: {e}")))?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(CONTENT_LENGTH, length.into());
    Ok(request)
}

/// Answers the text of the answer. One that breaks off is a reason to ask again.
pub(in crate::store) async fn send(wire: &Wire, mut request: HttpRequest) -> Outcome<String> {
    request.extensions_mut().insert(Words);
    let answer = wire.ask(request).await?;
    let bytes = answer.into_body().bytes().await;
    let bytes = bytes.map_err(|e| match fault::failure(&e) {
        Some(failure) => failure,
        None => Failure::new(Class::Network, fault::root(&e)),
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(in crate::store) fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Outcome<()> {
    let wrong = || Failure::new(Class::Config, format!("{value:?} does not fit into {name}"));
    let key = HeaderName::try_from(name).map_err(|_| wrong())?;
    let value = HeaderValue::from_str(value).map_err(|_| wrong())?;
    headers.insert(key, value);
    Ok(())
}

/// A header whose value is shown to nobody.
pub(in crate::store) fn hidden(headers: &mut HeaderMap, name: &str, value: &str) -> Outcome<()> {
    let wrong = || {
        Failure::new(
            Class::Config,
            format!("what is secret does not fit into {name}"),
        )
    };
    let key = HeaderName::try_from(name).map_err(|_| wrong())?;
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    headers.insert(key, value);
    Ok(())
}

/// RFC 3986, section 2.3; slashes stay in a path, and are a query's own business.
pub(in crate::store) fn encoded(text: &str, slashes: Slashes) -> String {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || b"-._~".contains(&byte)
            || (byte == b'/' && slashes == Slashes::Stay)
    };
    let bytes = text.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    bytes.collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Slashes {
    Stay,
    Go,
}
