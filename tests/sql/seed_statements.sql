-- statement: the tables exist
SELECT tablename 
FROM pg_tables 
WHERE schemaname = 'public' 
  AND tablename IN (
    'omnichannel_sessions', 
    'message_delivery_log', 
    'conversation_threads'
  );
-- statement: profiles is extended
SELECT column_name, data_type 
FROM information_schema.columns
WHERE table_name = 'profiles'
  AND column_name IN (
    'whatsapp_jid', 
    'has_whatsapp', 
    'allows_sms', 
    'last_active_channel', 
    'notification_preferences'
  );
-- statement: the functions exist
SELECT routine_name
FROM information_schema.routines
WHERE routine_schema = 'public'
  AND routine_name IN (
    'get_or_create_omnichannel_session',
    'update_omnichannel_session_status',
    'check_whatsapp_available',
    'log_message_delivery'
  );
-- statement: delivery rates of the last 24 hours
-- Check delivery rates (last 24h)
SELECT 
  channel,
  status,
  COUNT(*) as count,
  ROUND(100.0 * COUNT(*) FILTER (WHERE status = 'sent') / COUNT(*), 2) as success_rate
FROM message_delivery_log
WHERE created_at > NOW() - INTERVAL '24 hours'
GROUP BY channel, status;
-- statement: active sessions
-- Check active sessions
SELECT COUNT(*) as active_sessions
FROM omnichannel_sessions
WHERE status IN ('active', 'follow_up')
  AND updated_at > NOW() - INTERVAL '24 hours';
-- statement: the newest session of a number
SELECT * FROM omnichannel_sessions 
WHERE profile_id = (SELECT id FROM profiles WHERE phone_number = '+250788123456')
ORDER BY created_at DESC LIMIT 1;
-- statement: SMS of a deployment
SELECT * FROM v_agent_sms_enriched
WHERE deployment_id = 'xxx'
  AND sent_at >= NOW() - INTERVAL '30 days'
ORDER BY sent_at DESC;
-- statement: SMS KPI metrics
SELECT get_sms_metrics(
  '2025-11-01'::timestamptz,
  '2025-11-30'::timestamptz,
  NULL, -- client_id (optional)
  'xxx', -- deployment_id (optional)
  'louis' -- agent_type_name (optional)
);
-- statement: failed SMS
SELECT
  phone_number,
  message_content,
  failure_reason,
  sent_at
FROM v_agent_sms_enriched
WHERE status = 'failed'
  AND sent_at >= NOW() - INTERVAL '7 days';
