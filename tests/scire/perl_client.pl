#!/usr/bin/perl
# A foreign client, on Debian's libxmlrpc-lite-perl: fetches one job, acknowledges and reports it.
# perl_client.pl URL CA CERTIFICATE KEY
use strict;
use warnings;
use MIME::Base64;
use XMLRPC::Lite;

my ($url, $ca, $certificate, $key) = @ARGV;
my $server = XMLRPC::Lite->proxy(
    $url,
    ssl_opts => {
        SSL_ca_file     => $ca,
        SSL_cert_file   => $certificate,
        SSL_key_file    => $key,
        verify_hostname => 1,
    },
);
# Texts that look like numbers stay texts.
sub text { return SOAP::Data->type(string => shift) }
sub call {
    my $answer = $server->call(@_);
    die sprintf("fault %s: %s\n", $answer->faultcode, $answer->faultstring) if $answer->fault;
    return $answer->result;
}

my $hello = call('scire.hello', { protocol => text('1.0'), program => 'perl', mode => 'normal',
        install_id => 'perl', in_progress => [] });
print "name $hello->{name}\n";
my $delivery = call('scire.next_job', text(''));
my ($run, $attempt) = @$delivery{qw(run attempt)};
print "run $run\n";
$delivery->{file} =~ /<script[^>]*>([^<]*)</ or die "no script\n";
print "script $1\n";
my $idle = call('scire.next_job', text($delivery->{receipt}));
print 'more ', $idle->{more} ? 1 : 0, "\n";
my $status = <<"END";
<?xml version="1.0" encoding="UTF-8"?>
<scire-status version="1" run="$run" attempt="$attempt" seq="1"><state>succeeded</state>
<time>2026-11-22T02:00:41Z</time><exit code="0"/></scire-status>
END
for (1 .. 2) {
    my $answer = call('scire.job_status', SOAP::Data->type(base64 => $status));
    print "recorded $answer->{recorded}\n";
}
my $fault = $server->call('scire.get_job', 999999);
print 'fault ', $fault->faultcode, "\n";
call('scire.bye');
