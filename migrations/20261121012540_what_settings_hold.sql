-- 20261121012540_what_settings_hold.sql
-- The comments of two columns say again all that their JSON may hold: several migrations before each named their own part alone.
-- Safe to run again. Locks the two tables for a moment. Undo: the comments of 20261121012400.

comment on column public.clients.settings is
  'Rarely used. {sms_provider}: another provider than MTN; {sms_max_segments}: most segments of one SMS, 1 to 10; {quiet_hours: {from: HH:MM, until: HH:MM, time_zone}}: when no summary is sent (zone: Africa/Kigali where it names none); {whatsapp_then_sms: {after, until}}: how long that policy waits (seconds, 10 to 43200) and for which status (sent, delivered, read).';
comment on column public.profiles.notification_preferences is
  '{policy: both | sms_only | whatsapp_only | whatsapp_then_sms | cheapest | none, after, until, mirror_replies, allows_whatsapp, quiet_hours: {from, until, time_zone} | false}, policy and allows_whatsapp with their _source and _at; after (seconds) and until (sent, delivered, read) are of whatsapp_then_sms; a missing key: the client''s default.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012540'::text $$;

notify pgrst, 'reload schema';
