//! The door to `object.js`: storage and socket of a call's object, and the way to it. What each does is said there.

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

/// `tell(kind, text)`: a message came over the socket, or it is gone.
pub type Tell = Closure<dyn Fn(String, String)>;

#[wasm_bindgen(module = "/src/object.js")]
extern "C" {
    pub fn ask(env: &Env, binding: &str, name: &str, text: &str) -> Promise;

    pub fn answered(status: u16, text: &str) -> web_sys::Response;

    pub type Store;

    #[wasm_bindgen(constructor)]
    pub fn new(state: &JsValue) -> Store;

    #[wasm_bindgen(method)]
    pub fn note(this: &Store, name: &str) -> String;

    #[wasm_bindgen(method)]
    pub fn put(this: &Store, name: &str, value: &str);

    #[wasm_bindgen(method)]
    pub fn keep(this: &Store, seq: f64, event: &str);

    #[wasm_bindgen(method)]
    pub fn events(this: &Store, most: u32) -> String;

    #[wasm_bindgen(method)]
    pub fn stored(this: &Store, seq: f64);

    #[wasm_bindgen(method)]
    pub fn forget(this: &Store, kept: &str);

    #[wasm_bindgen(method)]
    pub fn clear(this: &Store) -> Promise;

    #[wasm_bindgen(method)]
    pub fn wake(this: &Store, ms: f64) -> Promise;

    pub type Socket;

    #[wasm_bindgen(constructor)]
    pub fn new(tell: &JsValue) -> Socket;

    #[wasm_bindgen(method)]
    pub fn open(this: &Socket, url: &str, authorization: &str, timeout_ms: u32) -> Promise;

    #[wasm_bindgen(method)]
    pub fn send(this: &Socket, text: &str) -> bool;

    #[wasm_bindgen(method)]
    pub fn close(this: &Socket);
}
