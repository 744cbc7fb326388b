//! The door to `shell.js`, the little of the shell that is JavaScript. What each function does is said there.

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

/// Separates the parts of a text that crosses. Neither a header, nor a URL, nor serialised JSON can contain it; what may
/// contain it comes last.
pub const PART: char = '\n';

/// `decide(env, head, body)`: a decision as text, or a promise of one.
pub type Decide = Closure<dyn Fn(Env, String, Vec<u8>) -> JsValue>;
/// `refused(env, queue, text, why)`: a promise of an empty text, or of the decision that replaces the first one.
pub type Refused = Closure<dyn Fn(Env, String, String, String) -> Promise>;

#[wasm_bindgen(module = "/src/shell.js")]
extern "C" {
    pub fn variables(env: &Env, names: &str) -> String;

    pub fn tell(level: &str, line: &str);

    pub type Door;

    #[wasm_bindgen(constructor)]
    pub fn new(headers: &str, limit: u32, decide: JsValue, refused: JsValue) -> Door;

    #[wasm_bindgen(method)]
    pub fn serve(this: &Door, request: web_sys::Request, env: Env) -> Promise;

    /// Lets so many requests of one invocation out at a time.
    #[derive(Clone)]
    pub type Slots;

    #[wasm_bindgen(constructor)]
    pub fn new(width: u32) -> Slots;

    pub fn send(
        slots: Option<&Slots>,
        url: &str,
        headers: &str,
        body: &str,
        timeout_ms: u32,
        limit: u32,
        method: &str,
    ) -> Promise;

    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        slots: Option<&Slots>,
        url: &str,
        headers: &str,
        file_name: &str,
        file_limit: u32,
        to: &str,
        to_headers: &str,
        fields: &str,
        timeout_ms: u32,
        limit: u32,
    ) -> Promise;

    pub fn enqueue(env: &Env, queue: &str, text: &str, delay_seconds: u32) -> Promise;
}
