-- What stands here. KEYS: state, server, shapes. -> state or '', run id of the server it was made on or '', shapes
return {call('GET', KEYS[1]) or '', call('GET', KEYS[2]) or '', call('HGETALL', KEYS[3])}
