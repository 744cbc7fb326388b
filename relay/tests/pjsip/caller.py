"""One call by PJSIP to the relay; a step a line on standard output, so that the test beside it knows how far it is.

Usage: caller.py ADDRESS TRANSPORT SCENARIO

ADDRESS is host:port of the relay, TRANSPORT udp, tcp or tls, SCENARIO talk or refer. The exit code is 0 if the call
went as the scenario has it.
"""

import os
import sys
import time

import pjsua2 as pj

ADDRESS, TRANSPORT, SCENARIO = sys.argv[1:4]
CALLED = f"sip:+250788000100@{ADDRESS};transport={TRANSPORT}"
KINDS = {"udp": pj.PJSIP_TRANSPORT_UDP, "tcp": pj.PJSIP_TRANSPORT_TCP, "tls": pj.PJSIP_TRANSPORT_TLS}
# Nothing on one machine takes longer.
SOON = 15.0

endpoint = pj.Endpoint()
# PJSIP's objects die with it: none may be collected before.
kept = []


def say(*words):
    print(*words, flush=True)


class Call(pj.Call):
    def __init__(self, account):
        super().__init__(account)
        self.over = False
        self.sounds = 0
        self.transfer = None

    def onCallState(self, _):
        self.over = self.getInfo().state == pj.PJSIP_INV_STATE_DISCONNECTED

    def onCallMediaState(self, _):
        self.sounds += 1
        # The list dies with what it belongs to.
        info = self.getInfo()
        for media in info.media:
            if media.type == pj.PJMEDIA_TYPE_AUDIO and media.status == pj.PJSUA_CALL_MEDIA_ACTIVE:
                tone.startTransmit(self.getAudioMedia(media.index))

    def onCallTransferRequest(self, parameter):
        # Nobody is called: what matters is that the relay asked, and whom for. PJSIP answers 202 and tells by NOTIFY.
        self.transfer = parameter.dstUri
        parameter.statusCode = pj.PJSIP_SC_ACCEPTED


def until(what, is_so):
    deadline = time.monotonic() + SOON
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {SOON} s")
        endpoint.libHandleEvents(20)


def for_ms(milliseconds):
    deadline = time.monotonic() + milliseconds / 1000
    while time.monotonic() < deadline:
        endpoint.libHandleEvents(20)


def start():
    endpoint.libCreate()
    settings = pj.EpConfig()
    settings.logConfig.level = int(os.environ.get("PJSIP_LOG", "1"))
    settings.logConfig.consoleLevel = settings.logConfig.level
    settings.uaConfig.threadCnt = 0
    settings.uaConfig.mainThreadOnly = True
    endpoint.libInit(settings)
    transport = pj.TransportConfig()
    transport.boundAddress = "127.0.0.1"
    endpoint.transportCreate(KINDS[TRANSPORT], transport)
    endpoint.audDevManager().setNullDev()
    endpoint.libStart()


def account():
    settings = pj.AccountConfig()
    settings.idUri = "sip:+250788123456@127.0.0.1"
    settings.callConfig.timerUse = pj.PJSUA_SIP_TIMER_ALWAYS
    settings.callConfig.timerSessExpiresSec = 90
    settings.mediaConfig.transportConfig.boundAddress = "127.0.0.1"
    made = pj.Account()
    made.create(settings)
    kept.append(made)
    return made


def a_tone():
    made = pj.ToneGenerator()
    made.createToneGenerator()
    description = pj.ToneDesc()
    description.freq1, description.on_msec, description.off_msec = 440, 1000, 10
    tones = pj.ToneDescVector()
    tones.append(description)
    made.play(tones, True)
    kept.append(made)
    return made


def packets(call):
    statistics = call.getStreamStat(0).rtcp
    return statistics.txStat.pkt, statistics.rxStat.pkt


def talk(call):
    for_ms(700)
    sent, received = packets(call)
    say("packets", sent, received)
    call.dialDtmf("12#")
    for_ms(1500)
    say("dialled")
    before = call.sounds
    call.setHold(pj.CallOpParam())
    until("hold is answered", lambda: call.sounds > before)
    info = call.getInfo()
    on_hold = [media.status for media in info.media]
    if on_hold != [pj.PJSUA_CALL_MEDIA_LOCAL_HOLD]:
        raise RuntimeError(f"held, but the media is {on_hold}")
    say("held")
    before = call.sounds
    again = pj.CallOpParam(True)
    again.opt.flag = pj.PJSUA_CALL_UNHOLD
    call.reinvite(again)
    until("the call goes on", lambda: call.sounds > before)
    _, received = packets(call)
    until("sound comes again", lambda: packets(call)[1] > received + 10)
    say("resumed")
    before = call.sounds
    call.update(pj.CallOpParam(True))
    for_ms(500)
    if call.over:
        raise RuntimeError("the refresh ended the call")
    say("refreshed")
    call.hangup(pj.CallOpParam())
    until("the call ends", lambda: call.over)


def refer(call):
    until("the relay hands the call over", lambda: call.transfer)
    say("referred", call.transfer)
    for_ms(500)
    if not call.over:
        call.hangup(pj.CallOpParam())
    until("the call ends", lambda: call.over)


def main():
    global tone
    start()
    tone = a_tone()
    call = Call(account())
    kept.append(call)
    call.makeCall(CALLED, pj.CallOpParam(True))
    until("the call is answered", lambda: call.getInfo().state == pj.PJSIP_INV_STATE_CONFIRMED)
    say("answered")
    {"talk": talk, "refer": refer}[SCENARIO](call)
    say("ended")


code = 1
try:
    main()
    code = 0
except Exception as problem:  # pj.Error is none of the standard ones
    say("failed", getattr(problem, "info", lambda: problem)())
sys.stdout.flush()
# The library asserts when it is taken down in order.
os._exit(code)
