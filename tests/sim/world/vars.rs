//! What the functions of a world are told: addresses of its parts, and secrets that exist only here.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Provider, ServiceKey, WorldConfig};
use crate::keys::{ProjectKeys, secret};
use crate::{mtn, twilio, whatsapp};

pub struct Accounts {
    pub mtn: mtn::Account,
    pub whatsapp: whatsapp::Account,
    pub openai: String,
    pub openai_webhook: String,
    pub twilio: twilio::Account,
}

impl Accounts {
    pub fn generate() -> Self {
        Self {
            mtn: mtn::Account::generate(),
            whatsapp: whatsapp::Account::generate(),
            openai: format!("sk-local-{}", secret()),
            openai_webhook: format!("whsec_{}", STANDARD.encode(secret())),
            twilio: twilio::Account::generate(),
        }
    }
}

pub struct Urls {
    pub gateway: String,
    pub mtn: String,
    pub whatsapp: String,
    pub openai: String,
    pub twilio: String,
}

/// The variables of every function: addresses of the world's parts, and secrets that exist only here.
pub fn secrets(config: &WorldConfig, keys: &ProjectKeys, accounts: &Accounts, urls: Urls) -> BTreeMap<String, String> {
    let service_key = match config.service_key {
        ServiceKey::Opaque => &keys.secret,
        ServiceKey::Legacy => &keys.service_role,
    };
    let mut all = vec![
        ("SUPABASE_URL", urls.gateway),
        ("SUPABASE_SERVICE_ROLE_KEY", service_key.clone()),
        ("SUPABASE_ANON_KEY", keys.anon.clone()),
        ("INTERNAL_API_KEY", secret()),
        ("VOICE_TRUNK_SECRET", secret()),
        ("TWILIO_AUTH_TOKEN", accounts.twilio.auth_token.clone()),
        ("TWILIO_BASE_URL", urls.twilio),
        ("TWILIO_STATUS_CALLBACK_URL", twilio::CALLBACK_URL.to_owned()),
        ("AFRICASTALKING_WEBHOOK_SECRET", secret()),
        ("OPENAI_WEBHOOK_SECRET", accounts.openai_webhook.clone()),
    ];
    let real = |provider| config.real.contains(&provider);
    if !real(Provider::Mtn) {
        let account = &accounts.mtn;
        all.extend([
            ("MTN_BASE_URL", urls.mtn),
            ("MTN_SMS_API_KEY", account.api_key.clone()),
            ("MTN_SMS_API_SECRET", account.api_secret.clone()),
            ("MTN_SMS_SENDER_ID", "EasyMO".to_owned()),
            ("MTN_SMS_SERVICE_CODE", mtn::SERVICE_CODE.to_owned()),
            ("MTN_WEBHOOK_SECRET", account.webhook_secret.clone()),
        ]);
    }
    if !real(Provider::WhatsApp) {
        let account = &accounts.whatsapp;
        all.extend([
            ("WHATSAPP_BASE_URL", urls.whatsapp),
            ("WHATSAPP_ACCESS_TOKEN", account.access_token.clone()),
            ("WHATSAPP_PHONE_NUMBER_ID", account.phone_number_id.clone()),
            ("WHATSAPP_APP_SECRET", account.app_secret.clone()),
            ("WHATSAPP_VERIFY_TOKEN", account.verify_token.clone()),
            ("WHATSAPP_TEMPLATE_LANGUAGES", "en,fr,rw_RW,sw".to_owned()),
        ]);
    }
    if !real(Provider::OpenAi) {
        all.extend([("OPENAI_BASE_URL", urls.openai), ("OPENAI_API_KEY", accounts.openai.clone())]);
    }
    let all = all.into_iter().map(|(name, value)| (name.to_owned(), value));
    all.chain(config.vars.clone()).collect()
}
