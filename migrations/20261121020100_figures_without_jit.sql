-- 20261121020100_figures_without_jit.sql
-- The sums behind get_sms_metrics are a few hundred rows, but their plan has to reckon with a whole begun hour of messages: among 36 million
-- its estimate passes jit_above_cost, and a tenth of a second goes into machine code that runs for three milliseconds.
-- Safe to run again. Undo: alter function ... reset jit.
alter function private.sms_totals(uuid[], timestamptz, timestamptz) set jit = off;
alter function private.sms_sums(uuid[], timestamptz, timestamptz) set jit = off;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121020100'::text $$;

notify pgrst, 'reload schema';
